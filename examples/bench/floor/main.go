// Floor is the least that can be an /init: it says that it runs, and waits.
package main

import "os"

func main() {
	_, _ = os.Stdout.WriteString("FLOOR\n")
	select {}
}
