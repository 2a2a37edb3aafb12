// Package container is the Docker Engine of this node, seen from outside: which
// containers use volumes, whether a local volume hides one of ours, when something
// changed. It also reads the kernel's mount tables, which tell who holds a file
// system whatever the engine believes. It decides nothing; the agent does.
package container
