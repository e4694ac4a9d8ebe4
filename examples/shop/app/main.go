// App is the service of the shop: it numbers orders, and keeps the number in Redis.
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"time"
)

func main() {
	http.HandleFunc("POST /order", func(w http.ResponseWriter, _ *http.Request) {
		n, err := redis("INCR orders")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, "order no.", n)
	})
	http.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "what will it be?") })
	log.Fatal(http.ListenAndServe(":8080", nil))
}

// redis sends a command whose answer is a number.
func redis(command string) (string, error) {
	c, err := net.DialTimeout("tcp", "store:6379", 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	fmt.Fprintf(c, "%s\r\n", command)
	line, err := bufio.NewReader(c).ReadString('\n')
	n, ok := strings.CutPrefix(strings.TrimSpace(line), ":")
	if err == nil && !ok {
		err = fmt.Errorf("redis answers %q", line)
	}
	return n, err
}
