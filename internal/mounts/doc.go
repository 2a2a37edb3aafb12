// Package mounts reads the kernel's mount tables, those of all mount namespaces of the
// machine: the last word on who holds a file system, whatever the container engine or
// zfs believe. It changes nothing and decides nothing. The agent asks it, by way of
// internal/daemon, whether a volume is let go, and the fencer what is left to unmount.
package mounts
