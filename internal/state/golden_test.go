package state

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// What a log holds is read by every later version: testdata/entries.jsonl has one line
// for each form that a command ever had, with every field filled, and snapshot-*.json
// one whole state of each form. UPDATE=1 adds what is new; what stands there stays.
func TestEntriesStayReadable(t *testing.T) {
	const file = "testdata/entries.jsonl"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	known := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	for i, line := range known {
		if _, err := Decode([]byte(line)); err != nil {
			t.Errorf("%s:%d: %v", file, i+1, err)
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(decoders)) {
		c, err := decoders[kind]([]byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		full := reflect.New(reflect.TypeOf(c)).Elem()
		fill(t, full, new(int))
		e := Envelope{Request: "r", At: time.Unix(1, 0).UTC(), Command: full.Interface().(Command)}
		b, err := Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := Decode(b); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%s: comes back as %+v, %v; want %+v", kind, back, err, e)
		}
		if slices.Contains(known, string(b)) {
			continue
		}
		if os.Getenv("UPDATE") == "" {
			t.Errorf("%s is not there in its present form (UPDATE=1 adds it):\n%s", kind, b)
		}
		known = append(known, string(b))
	}
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(file, []byte(strings.Join(known, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSnapshotsStayReadable(t *testing.T) {
	var full snapshot
	fill(t, reflect.ValueOf(&full).Elem(), new(int))
	full.Format = snapshotFormat
	now := dump(t, stateOf(&full))
	files, err := filepath.Glob("testdata/snapshot-*.json")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Unmarshal(bytes.NewReader(b)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		found = found || bytes.Equal(b, now)
	}
	if s, err := Unmarshal(bytes.NewReader(now)); err != nil || !bytes.Equal(dump(t, s), now) {
		t.Errorf("a snapshot comes back as another one (%v)", err)
	}
	switch {
	case found:
	case os.Getenv("UPDATE") != "":
		if err := os.WriteFile(fmt.Sprintf("testdata/snapshot-%d.json", len(files)+1), now, 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the present form is not there (UPDATE=1 adds it):\n%s", now)
	}
}

// fill gives every field a value of its own, one element to every list.
func fill(t *testing.T, v reflect.Value, n *int) {
	t.Helper()
	*n++
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(int64(*n), 0).UTC()))
		return
	case v.Type() == reflect.TypeFor[[]byte]():
		v.SetBytes([]byte{byte(*n)})
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), n)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(t, key, n)
		fill(t, value, n)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), n)
		}
	default:
		t.Fatalf("no value for a %s", v.Type())
	}
}
