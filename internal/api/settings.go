package api

import (
	"context"
	"net/http"
)

// Settings are the cluster's settings as they are in force, and what is odd about
// them, in words.
type Settings struct {
	Settings []Setting `json:"settings"`
	Warnings []string  `json:"warnings,omitempty"`
	// Index is the Raft index that the node which answers has applied.
	Index uint64 `json:"index"`
}

// Setting is one of them. Limits of bandwidth are listed only where there are any.
type Setting struct {
	Key     string `json:"key"`
	Value   string `json:"value"`
	Default bool   `json:"default"` // nobody has set it
	About   string `json:"about"`
}

// SettingsRequest changes settings; those that are not named stay.
type SettingsRequest struct {
	Set   map[string]string `json:"set,omitempty"`
	Reset []string          `json:"reset,omitempty"` // to their defaults
}

// Settings implements Backend.
func (c *Client) Settings(ctx context.Context) (s Settings, err error) {
	return s, c.call(ctx, request{method: "GET", path: "/v1/settings", out: &s})
}

// ChangeSettings implements Backend.
func (c *Client) ChangeSettings(ctx context.Context, req SettingsRequest) (s Settings, err error) {
	return s, c.call(ctx, request{method: "PATCH", path: "/v1/settings", in: req, out: &s, repeatable: true})
}

func settingsRoutes(b Backend) []route {
	return []route{
		{"GET", "/v1/settings", anyone, plain(func(r *http.Request) (any, error) { return b.Settings(r.Context()) })},
		{"PATCH", "/v1/settings", anyone, strict(func(r *http.Request, req SettingsRequest) (any, error) {
			return b.ChangeSettings(r.Context(), req)
		})},
	}
}
