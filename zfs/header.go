package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// StreamHeaderSize is how many bytes of a stream ParseStreamHeader looks at.
const StreamHeaderSize = 312

// StreamFilesystem is StreamHeader.Type of a filesystem.
const StreamFilesystem = 2

// StreamHeader is what a stream says of itself in its first record. It is not proven
// by anything: whoever made the stream may have written what they liked.
type StreamHeader struct {
	ToName   string // full name of the snapshot, on the sender
	ToGUID   uint64
	FromGUID uint64 // 0: full
	Created  time.Time
	Type     uint32 // StreamFilesystem, or another kind of dataset
	Compound bool   // a package of streams (send -R, -I, -p), which renames and destroys
	Clone    bool   // its base is in another dataset
	Dedup    bool
	Resuming bool // it goes on where another was cut off
	Redacted bool
	Raw      bool // of an encrypted dataset, as it is on disk
}

// Snapshot is the name of the snapshot that the stream makes, after the @.
func (h StreamHeader) Snapshot() string {
	_, name, _ := strings.Cut(h.ToName, "@")
	return name
}

// The first record of a stream (dmu_replay_record_t with drr_begin), in the byte order
// of the machine that made it; all numbers here are little-endian:
//
//	0  type of the record   32 bits: 0 begins a stream
//	4  length of a payload  32 bits
//	8  magic                64 bits
//	16 version              64 bits: 2 bits header type, 30 bits features
//	24 creation             64 bits: of the snapshot, in seconds
//	32 type of the dataset  32 bits
//	36 flags                32 bits
//	40 guid to              64 bits
//	48 guid from            64 bits
//	56 name to              256 bytes, ending in 0
const (
	beginRecord    = 0
	streamMagic    = 0x2F5bacbac
	headerStream   = 1
	headerCompound = 2

	featureDedup      = 1 << 0
	featureDedupProps = 1 << 1
	featureResuming   = 1 << 20
	featureRedacted   = 1 << 21
	featureRaw        = 1 << 24

	flagClone = 1 << 0
)

// ParseStreamHeader reads the first record of a stream, of which b must hold at least
// StreamHeaderSize bytes. What is no stream, or was made on a machine of another byte
// order, is an error.
func ParseStreamHeader(b []byte) (StreamHeader, error) {
	var h StreamHeader
	if len(b) < StreamHeaderSize {
		return h, fmt.Errorf("a zfs stream begins with %d bytes, and there are only %d", StreamHeaderSize, len(b))
	}
	n := binary.LittleEndian
	switch magic := n.Uint64(b[8:]); {
	case binary.BigEndian.Uint64(b[8:]) == streamMagic:
		return h, errors.New("the zfs stream was made on a machine of another byte order")
	case magic != streamMagic || n.Uint32(b) != beginRecord:
		return h, errors.New("it does not begin as a zfs stream does")
	}
	version := n.Uint64(b[16:])
	features := uint32(version>>2) & (1<<30 - 1)
	switch kind := version & 3; kind {
	case headerStream:
	case headerCompound:
		h.Compound = true
	default:
		return h, fmt.Errorf("a zfs stream of unknown kind %d", kind)
	}
	h.Created = time.Unix(int64(n.Uint64(b[24:])), 0).UTC()
	h.Type = n.Uint32(b[32:])
	h.Clone = n.Uint32(b[36:])&flagClone != 0
	h.ToGUID, h.FromGUID = n.Uint64(b[40:]), n.Uint64(b[48:])
	h.Dedup = features&(featureDedup|featureDedupProps) != 0
	h.Resuming = features&featureResuming != 0
	h.Redacted = features&featureRedacted != 0
	h.Raw = features&featureRaw != 0
	name, _, ended := bytes.Cut(b[56:StreamHeaderSize], []byte{0})
	if !ended {
		return h, errors.New("the name in the zfs stream has no end")
	}
	h.ToName = string(name)
	if h.Compound {
		return h, nil // its name may be that of a dataset
	}
	if err := CheckSnapshot(h.ToName); err != nil {
		return h, fmt.Errorf("the name in the zfs stream: %w", err)
	}
	return h, nil
}
