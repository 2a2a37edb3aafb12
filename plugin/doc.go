// Package plugin is flocker as Docker sees it: the volume driver "flocker" on a unix
// socket. It turns requests into calls of a Backend, keeps them within the time
// Docker waits, and words refusals so that a user can act on them. It decides
// nothing about volumes, never asks the container engine anything (which may be
// waiting for this very answer), and answers what it can from memory.
//
// Beside the driver, Mounts keeps the books on who uses a mounted volume. Docker's
// mount IDs repeat and its unmounts get lost, so they are only hints, held against
// the engine's list of containers and the kernel's mount tables.
package plugin
