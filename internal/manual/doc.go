// Package manual writes the pages of a command line, for a browser and for man, from the commands
// themselves. It reads what they say of themselves and runs none. The programs print their own pages,
// and their tests keep docs/CLI.md as they are.
package manual
