// Package container is the Docker Engine of this node, seen from outside: which
// containers use volumes, whether a local volume hides one of ours, when something
// changed, how a container was made and how the same one is made here, and its image on
// its way from one engine to another. It also reads the kernel's mount tables, which
// tell who holds a file system whatever the engine believes. It decides nothing; the
// agent and the daemon do.
package container
