package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// What people want to see of a machine that is ill. It is not in System: nothing is decided by
// it.

// PoolFeatures are the features of a pool, and of each whether it is active, enabled or disabled.
func (h *Host) PoolFeatures(ctx context.Context, pool string) (map[string]string, error) {
	if err := checkPool("features", pool); err != nil {
		return nil, err
	}
	argv := []string{"zpool", "get", "-Hp", "-o", "name,property,value,source", "all", pool}
	out, err := h.run(ctx, command{op: "features", argv: argv})
	if err != nil {
		return nil, err
	}
	rows, err := parseRows(out)
	if err != nil {
		return nil, &Error{Op: "features", Args: argv, Err: err}
	}
	features := map[string]string{}
	for _, r := range rows {
		if name, ok := strings.CutPrefix(r.prop, "feature@"); ok {
			features[name] = r.value
		}
	}
	if len(features) == 0 {
		return nil, &Error{Op: "features", Args: argv, Err: fmt.Errorf("zpool printed no feature of %s", pool)}
	}
	return features, nil
}

// PoolStatus is what `zpool status` says of a pool, for people.
func (h *Host) PoolStatus(ctx context.Context, pool string) (string, error) {
	if err := checkPool("status", pool); err != nil {
		return "", err
	}
	out, err := h.run(ctx, command{op: "status", argv: []string{"zpool", "status", "-v", pool}})
	return string(out), err
}

// Listing is what `zfs list` says of a dataset and all below it, without snapshots, for people.
func (h *Host) Listing(ctx context.Context, root string) (string, error) {
	if err := check("list", CheckDataset(root)); err != nil {
		return "", err
	}
	out, err := h.run(ctx, command{op: "list", argv: []string{"zfs", "list", "-r", "-t", "filesystem,volume",
		"-o", "name,used,available,referenced,written,mounted,readonly,mountpoint,origin", root}})
	return string(out), err
}

// Versions is Capabilities asked anew: packages are upgraded while a daemon runs. Without a module
// the commands say no version of it, which is ErrNoZFS.
func (h *Host) Versions(ctx context.Context) (Capabilities, error) {
	out, err := h.run(ctx, command{op: "version", argv: []string{"zfs", "version"}})
	if err != nil {
		// The userland prints its own version and then fails without the module.
		var e *Error
		if errors.As(err, &e) && ctx.Err() == nil {
			e.Kind = ErrNoZFS
		}
		return Capabilities{}, err
	}
	c, err := parseVersion(out)
	if err != nil {
		return Capabilities{}, &Error{Op: "version", Err: err}
	}
	return c, nil
}
