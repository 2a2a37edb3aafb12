// Package backup is the format in which a volume's snapshots are kept outside of a cluster,
// and where they are kept: a directory, an S3-compatible store, or one
// stream. flockctl uses it; no node sees a place of backups, its credentials or a key.
//
// A backup is one zfs stream, full or an increment on another backup, cut into chunks. Each
// chunk is an object whose name has the checksum of its content in it, and the manifest, which
// lists them, is written last: what has no manifest is no backup. Nothing of a chunk is handed
// on before all of it was read and is what the manifest says.
//
//	VOLUMEID/BACKUPID/partial       what it will be; there until the manifest is
//	VOLUMEID/BACKUPID/000000-SUM    a chunk
//	VOLUMEID/BACKUPID/000000.clear  only while an encrypted one is unfinished, to go on from
//	VOLUMEID/BACKUPID/writer        who writes it, renewed every minute: two never write to one
//	VOLUMEID/BACKUPID/manifest
//	VOLUMEID/BACKUPID/removed       it is being removed, and nothing may begin to stand on it
//
// Pieces may be stored in any order and several at a time; the manifest has their order. Of two
// flockctl that write to one backup, the mark refuses the second; that of two that get past it one
// is refused at the end is for PutNew, which is exact where the store is.
//
// What it guards against is damage and what was cut short. Who may write to a store can put
// another backup there: encryption to a public key keeps them from reading one, not from making
// one. With a secret of those who back up and restore (Auth) a manifest has a mark, and then
// nothing can be made, changed or put together there that passes for theirs. What is left to
// whoever may write is to remove, newer ones before older ones too.
package backup
