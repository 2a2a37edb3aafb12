package fence

import (
	"context"
	"log/slog"
	"path/filepath"
)

// Instead stops all writers of the volumes below root from the calling process, for when
// the fencer is gone for good. It looks and stops as the fencer does, but resets nothing.
// What it has done stands in the fencer's file in runDir afterwards, so that a fencer that
// comes back knows whom to have started again. It returns nil when a look has found
// nothing, else, when ctx ends, what stands in the way. The caller arms nothing meanwhile.
func Instead(ctx context.Context, log *slog.Logger, runDir, root string) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	kernel, err := newLinux()
	if err != nil {
		return err
	}
	return newFencer(log, filepath.Join(runDir, fileName), boot, readClocks, kernel, nil).instead(ctx, root)
}
