// Package container is the Docker Engine of this node, seen from outside: which
// containers use volumes, whether a local volume hides one of ours, when something
// changed, how a container was made and how the same one is made here, and its image on
// its way from one engine to another. It decides nothing; the agent and the daemon do.
package container
