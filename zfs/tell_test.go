package zfs_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/flocker-io/flocker/zfs"
)

func TestTell(t *testing.T) {
	calls := install(t, []reply{
		{0, "tank\tsize\t100\t-\ntank\tfeature@lz4_compress\tactive\tlocal\ntank\tfeature@draid\tdisabled\tlocal\n"},
		{0, "tank\tsize\t100\t-\n"},
		{0, "  pool: tank\n"},
		{0, "NAME USED\n"},
	})
	h := zfs.New(zfs.Options{})
	got, err := h.PoolFeatures(t.Context(), "tank")
	if want := map[string]string{"lz4_compress": "active", "draid": "disabled"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("features: %v, %v; want %v", got, err, want)
	}
	if got, err := h.PoolFeatures(t.Context(), "tank"); err == nil {
		t.Errorf("a pool without features: %v", got)
	}
	if out, err := h.PoolStatus(t.Context(), "tank"); err != nil || !strings.Contains(out, "pool: tank") {
		t.Errorf("status: %q, %v", out, err)
	}
	if out, err := h.Listing(t.Context(), "tank/flocker"); err != nil || !strings.Contains(out, "NAME") {
		t.Errorf("list: %q, %v", out, err)
	}
	for i, want := range []string{"zpool get -Hp -o name,property,value,source all tank", "", "zpool status -v tank", "zfs list -r -t filesystem,volume -o "} {
		if argv := strings.Join(calls()[i], " "); !strings.HasPrefix(argv, want) {
			t.Errorf("ran %q, want %q", argv, want)
		}
	}
	for _, err := range []error{
		second(h.PoolFeatures(t.Context(), "-x")), second(h.PoolStatus(t.Context(), "tank/x")), second(h.Listing(t.Context(), "tank@x")),
	} {
		if !errors.Is(err, zfs.ErrInvalid) {
			t.Errorf("a name that cannot be: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
