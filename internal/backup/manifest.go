package backup

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/flocker-io/flocker/internal/volume"
)

const (
	// version of the format, and that of a manifest with the mark of a secret. One that is not
	// known is refused: half understood, a backup could be restored as something else.
	version = 1
	marked  = 2
	// ChunkSize is how much of a stream is in a chunk, but for the last one; no backup has
	// larger ones. All of one is in memory at a time.
	ChunkSize = 32 << 20
	// sealing is at most what encryption adds to a chunk.
	sealing = 1 << 20
	// maxManifest is that of a stream of some 30 TiB.
	maxManifest = 256 << 20
)

// Manifest says what a backup is.
type Manifest struct {
	ID      string    `json:"id"`
	Volume  volume.ID `json:"volume"`
	Name    string    `json:"name"` // of the volume
	Cluster string    `json:"cluster,omitempty"`
	// Options are those of the volume then.
	Options  map[string]string `json:"options,omitempty"`
	Snapshot Snapshot          `json:"snapshot"`
	// Base is the backup whose snapshot this is an increment on; nil: it is a full one.
	Base *Base `json:"base,omitempty"`
	// Own says that the snapshot was taken for the backup.
	Own   bool      `json:"own,omitempty"`
	Began time.Time `json:"began"`
	Ended time.Time `json:"ended,omitzero"`
	// Recipients are the public keys that it is encrypted to; none: it is not encrypted.
	Recipients []string `json:"recipients,omitempty"`
	ChunkSize  int64    `json:"chunk_size"`
	Size       int64    `json:"size"` // of the stream
	Chunks     []Chunk  `json:"chunks,omitempty"`

	found found
}

// found is what Load saw beside a manifest.
type found struct {
	lacks   error     // why it cannot be restored
	removed bool      // it is being removed
	heard   time.Time // of who writes it
	rest    bool      // something is there that it does not need
	stored  int64     // as Stored, when the chunks were dropped
	pieces  int       // how many these were
	sum     string    // of the manifest that was read
	mark    string    // of the secret that it was made with; "": it has none
}

// head drops the chunks, of which there may be millions, of all backups of a place together. They
// are read again by who needs them.
func (m *Manifest) head() {
	m.found.stored, m.found.pieces, m.Chunks = m.Stored(), m.Pieces(), nil
}

// Sum is the checksum of the manifest that was read: of all that it says.
func (m *Manifest) Sum() string { return m.found.sum }

// Rest says that something is there that it does not need, as of who was cut short when it was finished.
func (m *Manifest) Rest() bool { return m.found.rest }

// objects are the names of what it consists of.
func (m *Manifest) objects() map[string]bool {
	names := map[string]bool{manifestName: true}
	for i, c := range m.Chunks {
		names[chunkName(i, c.Sum)] = true
	}
	return names
}

// Heard is when the flockctl that writes it was last heard of; zero: none does.
func (m *Manifest) Heard() time.Time { return m.found.heard }

// Removed says that somebody began to remove it.
func (m *Manifest) Removed() bool { return m.found.removed }

// SealedTo says whether it is encrypted to those, and to no others.
func (m *Manifest) SealedTo(recipients []string) bool {
	return slices.Equal(slices.Compact(slices.Sorted(slices.Values(m.Recipients))), slices.Compact(slices.Sorted(slices.Values(recipients))))
}

// Snapshot is the one that a backup is of.
type Snapshot struct {
	Name  string    `json:"name"`
	GUID  uint64    `json:"guid,string"`
	Taken time.Time `json:"taken"`
}

// Base is what an increment needs.
type Base struct {
	ID   string `json:"id"`
	GUID uint64 `json:"guid,string"` // of its snapshot
}

// Chunk is a piece of the stream as it is kept.
type Chunk struct {
	Size   int64  `json:"size"`   // of the piece
	Stored int64  `json:"stored"` // of the object
	Sum    string `json:"sum"`    // SHA-256 of the object
}

// Encrypted says that nobody reads it without a key.
func (m *Manifest) Encrypted() bool { return len(m.Recipients) > 0 }

// Pieces is how many chunks it has.
func (m *Manifest) Pieces() int { return max(len(m.Chunks), m.found.pieces) }

// Stored is how much room its chunks take.
func (m *Manifest) Stored() (n int64) {
	if len(m.Chunks) == 0 {
		return m.found.stored
	}
	for _, c := range m.Chunks {
		n += c.Stored
	}
	return n
}

// NewID names a backup that begins now. In their order they are by time.
func NewID(now time.Time) string {
	var b [4]byte
	rand.Read(b[:]) // never fails
	return now.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(b[:])
}

var (
	validID  = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}$`)
	validSum = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

const (
	manifestName = "manifest"
	partialName  = "partial"
	writerName   = "writer"
	removedName  = "removed"
)

func (m *Manifest) prefix() string            { return string(m.Volume) + "/" + m.ID + "/" }
func (m *Manifest) object(name string) string { return m.prefix() + name }

func chunkName(i int, sum string) string { return fmt.Sprintf("%06d-%s", i, sum) }
func clearName(i int) string             { return fmt.Sprintf("%06d.clear", i) }

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

const magic = "flocker-backup"

// encode writes a manifest with its own checksum before it, and with the mark of a secret, if
// there is one.
func (m *Manifest) encode(a *Auth) ([]byte, error) {
	body, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encoding the manifest: %w", err)
	}
	sum := sumOf(body)
	head := fmt.Appendf(nil, "%s %d %s\n", magic, version, sum)
	if a != nil {
		head = fmt.Appendf(nil, "%s %d %s %s\n", magic, marked, sum, a.mark(manifestName, sum))
	}
	return append(head, body...), nil
}

// parse reads a manifest. whole says that it is to be one of a finished backup.
func parse(b []byte, whole bool) (*Manifest, error) {
	head, body, cut := bytes.Cut(b, []byte("\n"))
	words := strings.Split(string(head[:min(len(head), 200)]), " ")
	switch {
	case !cut || len(words) < 3 || words[0] != magic:
		return nil, errors.New("it is no manifest of a backup")
	case words[1] != fmt.Sprint(version) && words[1] != fmt.Sprint(marked):
		return nil, fmt.Errorf("it is of format %.20q, and this flockctl knows only %d and %d: use a newer one", words[1], version, marked)
	case words[1] == fmt.Sprint(version) && len(words) != 3, words[1] == fmt.Sprint(marked) && (len(words) != 4 || !validSum.MatchString(words[3])):
		return nil, errors.New("the manifest is damaged: its first line does not fit")
	case words[2] != sumOf(body):
		return nil, errors.New("the manifest is damaged: its checksum does not fit")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	m := &Manifest{}
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("the manifest cannot be read: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the manifest goes on after its end")
	}
	if err := m.check(whole); err != nil {
		return nil, fmt.Errorf("the manifest makes no sense: %w", err)
	}
	m.found.sum = words[2]
	if len(words) > 3 {
		m.found.mark = words[3]
	}
	return m, nil
}

// check says what is wrong with a manifest: names become names of objects, and sizes memory.
func (m *Manifest) check(whole bool) error {
	if _, err := volume.ParseID(string(m.Volume)); err != nil {
		return err
	}
	if err := volume.ValidateName(m.Name); err != nil {
		return err
	}
	switch {
	case !validID.MatchString(m.ID):
		return fmt.Errorf("%.40q is not the id of a backup", m.ID)
	case m.Snapshot.GUID == 0 || m.Snapshot.Name == "":
		return errors.New("it is of no snapshot")
	case m.Base != nil && (!validID.MatchString(m.Base.ID) || m.Base.GUID == 0):
		return errors.New("it is an increment on nothing")
	case m.Base != nil && (m.Base.ID == m.ID || m.Base.GUID == m.Snapshot.GUID):
		return errors.New("it is an increment on itself")
	case m.ChunkSize <= 0 || m.ChunkSize > ChunkSize:
		return fmt.Errorf("it is in chunks of %d bytes", m.ChunkSize)
	case !whole && len(m.Chunks) > 0:
		return errors.New("what is not finished lists no chunks")
	}
	var size int64
	for i, c := range m.Chunks {
		switch {
		case !validSum.MatchString(c.Sum):
			return fmt.Errorf("chunk %d has no checksum", i)
		case c.Size <= 0 || c.Size > m.ChunkSize || c.Size < m.ChunkSize && i < len(m.Chunks)-1:
			return fmt.Errorf("chunk %d has %d bytes", i, c.Size)
		case c.Stored < c.Size || c.Stored > c.Size+sealing || !m.Encrypted() && c.Stored != c.Size:
			return fmt.Errorf("chunk %d has %d bytes, stored as %d", i, c.Size, c.Stored)
		}
		size += c.Size
	}
	if whole && (size != m.Size || size == 0) {
		return fmt.Errorf("its chunks have %d bytes, and all of it %d", size, m.Size)
	}
	return nil
}
