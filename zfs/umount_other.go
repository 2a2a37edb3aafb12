//go:build !linux

package zfs

// unmountByKernel leaves it to the command.
func (h *Host) unmountByKernel(name string, argv []string) bool { return false }
