package proxy

// elder is an older process.
type elder struct{}

func (e *elder) cut(route string) {}
