// Package zfsfake is ZFS in memory: a Host with pools, datasets and snapshots
// whose files are real bytes, and streams that are real bytes too, so that two
// fakes meet only through what one sends and the other receives. It passes the
// same suite as the real thing (zfstest), works inside a testing/synctest bubble,
// and can be told to fail, to be slow, to fill up and to lose power.
//
// It is for tests and for flockd's trial mode; nothing in it touches the disk.
//
// Where it differs from OpenZFS:
//
//   - Sizes are plausible, not exact: a file costs its length in blocks of 4 KiB
//     and a little; there is no compression. Snapshots' Used counts what only that
//     snapshot has.
//   - Mounts are a table, not a file system; Files are flat paths, without
//     directories, owners or modes. "A process has a file open" is SetInUse.
//   - A write that is not yet synced becomes visible in Written, and survives a
//     Crash, after Options.TxgTimeout, or at once through Sync, Unmount and a
//     snapshot of its dataset. Real ZFS may sync earlier.
//   - Crash loses all that was not synced. Real ZFS may lose less.
//   - Rename refuses a mounted filesystem (ErrBusy), where real ZFS remounts it if
//     it can; unmounting a filesystem does not unmount those below it.
//   - A suspended pool refuses every change at once (ErrSuspended); on a real one
//     what is under way already hangs.
//   - The stream format is its own, but for its first record. Flags and features do not exist.
//   - encryption is a word that a dataset is created with and that those below it
//     inherit; nothing is encrypted, and no key is asked for.
//   - A block device (CreateVolume) has a name and nothing in it.
//   - Quotas other than refquota do nothing; refquota is exact, at once.
//   - Properties other than those that flocker reads are kept and inherited, not
//     obeyed; their values are checked only for on/off kinds and sizes.
package zfsfake
