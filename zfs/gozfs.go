package zfs

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v3"
)

// What go-zfs carries: the dataset verbs whose command line is exactly ours and
// which end in one short transaction: Rename and Destroy (of filesystems and
// bookmarks). It takes no context, so those calls look at ctx before
// and after and run to their end; its process-wide timeout, which would also kill
// streams, stays unset.
//
// What it does not carry, and why: listings (it knows neither guid nor createtxg
// nor user properties, and one process per dataset is too many), pools (no guid,
// and no file system options at creation), properties (one per process), create
// and clone (no -u; clone -p would make missing parents), snapshots (one per
// process), bookmarks, holds, promote, mount (it would list the dataset after it,
// while the clients of a move wait), unmount (tried again while busy, under a
// context) and streams (no flags, no resume, and its receive hangs on an ordinary
// reader after the child has gone).
//
// It "acts, then lists": after Rename it reads the dataset again, and an
// error of that reading looks like one of the act. A caller treats every error as
// "state unknown" anyway.

// viaGoZFS runs one call of go-zfs as if it were the command argv.
func (h *Host) viaGoZFS(ctx context.Context, op string, argv []string, call func() error) (err error) {
	began := time.Now()
	defer func() {
		if h.options.Observe != nil {
			h.options.Observe(op, argv, time.Since(began), err)
		}
	}()
	if ctx.Err() != nil {
		return &Error{Op: op, Args: argv, Err: context.Cause(ctx)}
	}
	err = call()
	if err == nil {
		return nil
	}
	var lib *gozfs.Error
	if !errors.As(err, &lib) {
		return &Error{Op: op, Args: argv, Err: err}
	}
	e := newError(op, argv, lib.Stderr, lib.Err)
	if lib.Stderr == "" && strings.Contains(lib.Err.Error(), "executable file not found") {
		e.Kind = ErrNoZFS
	}
	return e
}

// Rename implements System.
func (h *Host) Rename(ctx context.Context, from, to string) error {
	if err := check("rename", checkAny(from), checkAny(to)); err != nil {
		return err
	}
	if strings.Contains(from, "@") != strings.Contains(to, "@") {
		return invalid("rename", "one name is a snapshot's, the other is not")
	}
	return h.viaGoZFS(ctx, "rename", []string{"zfs", "rename", from, to}, func() error {
		_, err := (&gozfs.Dataset{Name: from}).Rename(to, false, false)
		return err
	})
}

// Destroy implements System.
func (h *Host) Destroy(ctx context.Context, name string) error {
	if err := check("destroy", CheckDataset(name)); err != nil {
		return err
	}
	if !strings.Contains(name, "/") {
		return invalid("destroy", "a pool's root is not destroyed")
	}
	// zfs destroys the snapshots first and then finds that it cannot unmount. Whoever
	// has the filesystem open shall keep all of it.
	err := h.Unmount(ctx, name)
	if err != nil {
		return asOp("destroy", unless(err, ErrNotFound))
	}
	err = h.viaGoZFS(ctx, "destroy", []string{"zfs", "destroy", "-r", name}, func() error {
		return (&gozfs.Dataset{Name: name}).Destroy(gozfs.DestroyRecursive)
	})
	// Something below it that vanished meanwhile is another matter than name itself.
	var e *Error
	if errors.As(err, &e) && e.Kind == ErrNotFound && slices.Equal(e.Names, []string{name}) {
		return nil
	}
	return err
}

// asOp makes an error of one step that of the whole.
func asOp(op string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		e.Op = op
	}
	return err
}

// DestroyBookmark implements System.
func (h *Host) DestroyBookmark(ctx context.Context, bookmark string) error {
	if err := check("destroy-bookmark", CheckBookmark(bookmark)); err != nil {
		return err
	}
	err := h.viaGoZFS(ctx, "destroy-bookmark", []string{"zfs", "destroy", bookmark}, func() error {
		return (&gozfs.Dataset{Name: bookmark}).Destroy(gozfs.DestroyDefault)
	})
	return unless(err, ErrNotFound)
}
