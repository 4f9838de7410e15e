// A Go program that names its LLM calls for nexent-observer (docs/hooks.md).
//
//	CGO_ENABLED=1 go build -o example . && ./example https://localhost:8443/v1/chat/completions
//
// cgo is needed for the probe point only. The announcement is made by the goroutine that writes the request, right before the write: net/http
// writes from a goroutine of its own, so the name travels with the connection, which serves one request at a time here.
package main

/*
#define NEXENT_OBSERVER_IMPLEMENTATION
#include "../../c/nexent_observer.h"
#include <stdlib.h>

static void announce(const char *text, size_t len) { nexent_observer_announce(text, len); }
static int listening(void) { return nexent_observer_listening(); }
*/
import "C"

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"unsafe"
)

// span is what the observer is told of one piece of work.
type span struct{ id, trace, endpoint string }

func newSpan(endpoint string) span {
	random := make([]byte, 24)
	if _, err := rand.Read(random); err != nil {
		panic(err)
	}
	return span{hex.EncodeToString(random[:8]), hex.EncodeToString(random[8:]), endpoint}
}

func announce(message map[string]any) {
	if C.listening() == 0 {
		return
	}
	message["v"] = 1
	text, err := json.Marshal(message)
	if err != nil || len(text) == 0 {
		return
	}
	C.announce((*C.char)(unsafe.Pointer(&text[0])), C.size_t(len(text)))
}

// named is a connection whose writes are announced. The thread must be the same for both, so it is locked in between.
type named struct {
	net.Conn
	span *span
}

func (c named) Write(data []byte) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	announce(map[string]any{"k": "write", "s": c.span.id, "t": c.span.trace, "n": c.span.endpoint})
	return c.Conn.Write(data)
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: example URL")
		os.Exit(2)
	}
	work := newSpan("example.ask")
	announce(map[string]any{"k": "begin", "s": work.id, "t": work.trace, "n": work.endpoint, "o": "endpoint"})
	defer announce(map[string]any{"k": "end", "s": work.id})
	dial := func(network, address string) (net.Conn, error) {
		conn, err := tls.Dial(network, address, &tls.Config{NextProtos: []string{"http/1.1"}})
		if err != nil {
			return nil, err
		}
		return named{conn, &work}, nil
	}
	client := &http.Client{Transport: &http.Transport{DialTLS: dial}}
	body := `{"model": "example", "messages": [{"role": "user", "content": "Hello"}], "stream": true}`
	response, err := client.Post(os.Args[1], "application/json", strings.NewReader(body))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
