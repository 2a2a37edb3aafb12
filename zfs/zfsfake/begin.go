package zfsfake

import (
	"encoding/binary"

	"github.com/flocker-io/flocker/zfs"
)

// BeginRecord is the first record of a stream as OpenZFS lays it out on a
// little-endian machine: what zfs.ParseStreamHeader reads.
func BeginRecord(h zfs.StreamHeader) []byte {
	// As zfs send -L -e -c sets them: SA_SPILL, EMBED_DATA, LZ4, LARGE_BLOCKS, COMPRESSED.
	features := uint64(1<<2 | 1<<16 | 1<<17 | 1<<19 | 1<<22)
	for bit, set := range map[int]bool{0: h.Dedup, 20: h.Resuming, 21: h.Redacted, 24: h.Raw} {
		if set {
			features |= 1 << bit
		}
	}
	version := features<<2 | 1
	if h.Compound {
		version = features<<2 | 2
	}
	flags := uint32(1 << 2) // FREERECORDS
	if h.Clone {
		flags |= 1
	}
	n := binary.LittleEndian
	b := make([]byte, 8, zfs.StreamHeaderSize) // DRR_BEGIN, without a payload
	b = n.AppendUint64(b, 0x2F5bacbac)
	b = n.AppendUint64(b, version)
	b = n.AppendUint64(b, uint64(h.Created.Unix()))
	b = n.AppendUint32(b, h.Type)
	b = n.AppendUint32(b, flags)
	b = n.AppendUint64(b, h.ToGUID)
	b = n.AppendUint64(b, h.FromGUID)
	b = append(b, h.ToName...)
	return append(b, make([]byte, zfs.StreamHeaderSize-len(b))...)
}
