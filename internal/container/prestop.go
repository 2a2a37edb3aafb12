package container

import (
	"path"
	"strings"
)

// LabelPreStop on a container says what is done in it before it is stopped for a move,
// while its clients are still served: a command for its shell, the name of a preset, or
// "none". Without it the preset of an image that is well known is taken.
const LabelPreStop = "flocker.pre-stop"

// PreStop is such a thing to do. What a server writes when it ends is written with its
// clients waiting; what it has written before is copied before.
type PreStop struct {
	Name    string   // of the preset, or the label
	Command []string // nil: nothing is to be done
	// Undo makes a container as it was before Command, which has said so with a word of
	// output, when it is not stopped after all. Nil: there is nothing to undo.
	Undo []string
}

// presets by name, each with the images that it is for when no label says more.
var presets = map[string]PreStop{
	// The stop then has a checkpoint of a moment to write instead of one of minutes.
	"postgres": {Command: shell(postgresCheckpoint)},
	// A server that keeps an append-only file has all data in it, and need not write all of it
	// once more when it ends. Older ones than 7.0 cannot be told so.
	"redis": {
		Command: shell(redisAsks + `
[ "$how" = default ] || exit 0
said=$(redis-cli config set shutdown-on-sigterm nosave) && [ "$said" = OK ] && echo nosave || { echo "$said"; exit 1; }`),
		Undo: shell(redisAsks + `
[ "$how" = nosave ] || exit 0
said=$(redis-cli config set shutdown-on-sigterm default) && [ "$said" = OK ] || { echo "$said"; exit 1; }`),
	},
}

const postgresCheckpoint = `PGPASSWORD="${PGPASSWORD-$POSTGRES_PASSWORD}"
export PGPASSWORD
exec psql -X -q -w -U "${POSTGRES_USER:-postgres}" -d "${POSTGRES_DB:-${POSTGRES_USER:-postgres}}" -c CHECKPOINT`

// redisAsks ends with how the server ends, unless it has no append-only file.
const redisAsks = `aof=$(redis-cli --raw config get appendonly) || { echo "$aof"; exit 1; }
case $aof in
appendonly*yes) ;;
appendonly*) exit 0 ;;
*) echo "$aof"; exit 1 ;;
esac
how=$(redis-cli --raw config get shutdown-on-sigterm | tail -n 1)`

func shell(script string) []string { return []string{"/bin/sh", "-c", script} }

// PreStopOf a container with these labels and of this image, as its user called it.
func PreStopOf(labels map[string]string, image string) PreStop {
	name := labels[LabelPreStop]
	switch {
	case name == "none":
		return PreStop{}
	case name == "":
		name = wellKnown(image)
	}
	if p, ok := presets[name]; ok {
		p.Name = name
		return p
	}
	if name == "" {
		return PreStop{}
	}
	return PreStop{Name: LabelPreStop, Command: shell(name)}
}

// wellKnown is the preset for an image. Only the official ones, and mirrors of them, are
// unmistakable: others have their tools and users elsewhere.
func wellKnown(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		image = image[:i]
	}
	dir, base := path.Split(image)
	if _, ok := presets[base]; ok && (dir == "" || strings.HasSuffix("/"+dir, "/library/")) {
		return base
	}
	return ""
}
