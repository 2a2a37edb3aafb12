package container

import (
	"strconv"
	"time"
)

// Labels on a container that say what is done in it before and after somebody takes a
// snapshot of a volume that it uses: a command for its shell, "none", or, before, the name of
// a preset. Without them nothing is: a snapshot is what a loss of power would leave, which
// databases come up from.
const (
	LabelPreSnapshot  = "flocker.pre-snapshot"
	LabelPostSnapshot = "flocker.post-snapshot"
)

// SnapshotHookLimit is how long such a command may take. Who waits for it only ends the
// waiting, so the container itself ends the command then, where it has a timeout(1): one that
// stops a program's writes must not do so after what lets it go on.
const SnapshotHookLimit = 30 * time.Second

// SnapshotHook is such a command. The zero value is none.
type SnapshotHook struct {
	Label   string
	Name    string // what the label says, for people
	Command []string
}

// snapshotPresets by name.
var snapshotPresets = map[string]string{
	// What recovery would have to read again is short.
	"postgres": postgresCheckpoint,
	// A server with an append-only file has written all of it there already.
	"redis": `aof=$(redis-cli --raw config get appendonly) || { echo "$aof"; exit 1; }
case $aof in
appendonly*yes) exit 0 ;;
appendonly*) ;;
*) echo "$aof"; exit 1 ;;
esac
saving() { redis-cli --raw info persistence | grep -q "^rdb_bgsave_in_progress:1"; }
while saving; do sleep 0.1; done
said=$(redis-cli bgsave)
case $said in
Background*) ;;
*) echo "$said"; exit 1 ;;
esac
while saving; do sleep 0.1; done
redis-cli --raw info persistence | grep -q "^rdb_last_bgsave_status:ok" || { echo "the data could not be saved"; exit 1; }`,
}

// PreSnapshotOf a container with these labels.
func PreSnapshotOf(labels map[string]string) SnapshotHook {
	name := labels[LabelPreSnapshot]
	if script, ok := snapshotPresets[name]; ok {
		return SnapshotHook{Label: LabelPreSnapshot, Name: name, Command: limited(script)}
	}
	return snapshotHook(LabelPreSnapshot, name)
}

// PostSnapshotOf a container with these labels.
func PostSnapshotOf(labels map[string]string) SnapshotHook {
	return snapshotHook(LabelPostSnapshot, labels[LabelPostSnapshot])
}

func snapshotHook(label, script string) SnapshotHook {
	if script == "" || script == "none" {
		return SnapshotHook{}
	}
	return SnapshotHook{Label: label, Name: script, Command: limited(script)}
}

// limited runs a script for SnapshotHookLimit at most.
func limited(script string) []string { return limitedTo(SnapshotHookLimit, script) }

// limitedTo runs a script for so long at most. Busybox's timeout(1) ends the one process that it
// was given, which leaves what hangs in a script to itself. So that one is a shell which ends the
// group of the script. Where there is no setsid(1) for that, it is as timeout does it. Where that is
// not there either, or is one that wants its time in another way, the script runs without.
func limitedTo(limit time.Duration, script string) []string {
	return []string{"/bin/sh", "-c", `timeout -s KILL 5 true 2>/dev/null || exec /bin/sh -c "$0"
setsid true 2>/dev/null || exec timeout -s KILL "$1" /bin/sh -c "$0"
exec timeout -s TERM "$1" /bin/sh -c 'setsid /bin/sh -c "$0" & group=$!
trap "kill -KILL -$group; exit 137" TERM
wait $group' "$0"`, script, strconv.Itoa(int(limit / time.Second))}
}
