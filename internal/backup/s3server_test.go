package backup

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/flocker-io/flocker/internal/volume"
)

// s3server is as much of S3 as backups need, with one bucket, and with the whims that servers of it
// have. Unlike them it has no keys and no limits; the real one of TestS3 passes the same suite.
type s3server struct {
	mu      sync.Mutex
	objects map[string][]byte
	page    int // how many objects a page of a list has
	// onNew is what becomes of If-None-Match: "" minds it, and so do "conflict", which first answers
	// that somebody else is at it, and "lost", which first does as it is told and then fails;
	// "ignored" and "refused" do not.
	onNew string
	said  bool // that was done
}

func (s *s3server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	was, there := s.objects[key]
	switch {
	case bucket != "backups":
		refuse(w, http.StatusNotFound, "NoSuchBucket")
	case r.Method == http.MethodGet && key == "":
		s.list(w, r)
	case r.Method == http.MethodPut && r.Header.Get("If-None-Match") != "":
		switch {
		case s.onNew == "refused":
			refuse(w, http.StatusNotImplemented, "NotImplemented")
		case s.onNew == "conflict" && !s.said && !there:
			s.said = true
			refuse(w, http.StatusConflict, "ConditionalRequestConflict")
		case there && s.onNew != "ignored":
			refuse(w, http.StatusPreconditionFailed, "PreconditionFailed")
		default:
			s.objects[key] = body
			if s.onNew == "lost" && !s.said {
				s.said = true
				refuse(w, http.StatusInternalServerError, "InternalError")
			}
		}
	case r.Method == http.MethodPut:
		s.objects[key] = body
	case r.Method == http.MethodDelete:
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case !there:
		refuse(w, http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("Content-Length", fmt.Sprint(len(was)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(was)
		}
	}
}

// hold takes the first answer for given, or not.
func (s *s3server) hold(said bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = said
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
}

func (s *s3server) list(w http.ResponseWriter, r *http.Request) {
	type object struct {
		Key  string
		Size int
	}
	var page struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []object
	}
	var keys []string
	for key := range s.objects {
		if strings.HasPrefix(key, r.FormValue("prefix")) && key > r.FormValue("continuation-token") {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	if len(keys) > s.page {
		keys, page.IsTruncated, page.NextContinuationToken = keys[:s.page], true, keys[s.page-1]
	}
	for _, key := range keys {
		page.Contents = append(page.Contents, object{key, len(s.objects[key])})
	}
	_ = xml.NewEncoder(w).Encode(page)
}

// newS3 has the environment name a server.
func newS3(t *testing.T, onNew string) *s3server {
	t.Helper()
	s := &s3server{objects: map[string][]byte{}, page: 3, onNew: onNew}
	l := httptest.NewServer(s)
	t.Cleanup(l.Close)
	s3At(t, l.URL, "some", "thing")
	return s
}

// What servers make of If-None-Match is no matter for one flockctl after the other, and what is
// left to chance with some of them is told.
func TestS3Servers(t *testing.T) {
	for _, onNew := range []string{"", "conflict", "lost", "ignored", "refused"} {
		t.Run(cmp.Or(onNew, "minded"), func(t *testing.T) {
			server := newS3(t, onNew)
			s, err := Open(t.Context(), "s3://backups/some/where", true)
			if err != nil {
				t.Fatal(err)
			}
			server.hold(onNew == "lost") // that is for those who compare, below
			testStore(t, s)
			server.hold(false)

			want := content(10*small + 1)
			told := 0
			w := Writing{Store: s, Manifest: about(1), Now: clock, Uploads: 4, Warn: func(err error) {
				if told++; !errors.Is(err, errInexact) {
					t.Error(err)
				}
			}}
			m, err := w.Write(t.Context(), bytes.NewReader(want))
			if err != nil {
				t.Fatal(err)
			}
			if inexact := onNew == "ignored" || onNew == "refused"; told != map[bool]int{true: 1}[inexact] {
				t.Errorf("it was told %d times that the store is not exact", told)
			}
			all, err := Load(t.Context(), s)
			if err != nil || len(all.Backups) != 1 || all.Backups[0].Rest() || len(names(t, s)) != m.Pieces()+1 {
				t.Fatalf("found %+v, %v; %q", all, err, names(t, s))
			}
			if got, err := io.ReadAll(Stream(t.Context(), s, all.Backups[0], nil)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
			if _, err := w.Write(t.Context(), bytes.NewReader(want)); volume.CodeOf(err) != volume.CodeConflict {
				t.Errorf("once more: %v", err)
			}
		})
	}
}

// Who began at the same moment, and said so later, is the one that goes on.
func TestBegunAtOnce(t *testing.T) {
	s := newMemory()
	second := Writing{Store: s, Manifest: about(1), Now: clock, Resume: true}
	first := second
	first.Store = &afterPut{s, func() {
		if _, err := second.Begin(t.Context()); err != nil {
			t.Error(err)
		}
	}}
	if _, err := first.Begin(t.Context()); volume.CodeOf(err) != volume.CodeConflict {
		t.Errorf("the first one goes on: %v", err)
	}
}
