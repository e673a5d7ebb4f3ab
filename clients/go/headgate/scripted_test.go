package headgate_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"headgate.dev/go/headgate"
)

const script = "../../behaviour.json"

// seenCall is a call as the scripted server saw it.
type seenCall struct {
	Call     *int
	Ended    *int
	Address  string
	Method   string
	Metadata map[string]string
	Timeout  *float64
	Request  json.RawMessage
	Outcome  string
}

// scripted is `python -m headgate.testing` with the script that all clients' suites share.
type scripted struct {
	address string
	process *exec.Cmd
	stdin   io.Closer

	lock  sync.Mutex
	calls []*seenCall
}

// shared is the server of most tests, started by the first.
var shared = sync.OnceValues(func() (*scripted, error) { return startScripted(script) })

func TestMain(m *testing.M) {
	code := m.Run()
	if server, err := shared(); err == nil {
		server.stop()
	}
	os.Exit(code)
}

func python() string {
	if named := os.Getenv("HEADGATE_PYTHON"); named != "" {
		return named
	}
	return filepath.Join("..", "..", "..", ".venv", "bin", "python")
}

func startScripted(script string, options ...string) (*scripted, error) {
	command := append([]string{"-m", "headgate.testing", "--script", script}, options...)
	server := &scripted{process: exec.Command(python(), command...)}
	server.process.Stderr = os.Stderr
	stdin, _ := server.process.StdinPipe()
	server.stdin = stdin
	stdout, err := server.process.StdoutPipe()
	if err == nil {
		err = server.process.Start()
	}
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 64<<20)
	if !lines.Scan() {
		return nil, fmt.Errorf("the scripted server did not start: %w", lines.Err())
	}
	var first seenCall
	if err := json.Unmarshal(lines.Bytes(), &first); err != nil {
		return nil, err
	}
	server.address = first.Address
	go func() {
		for lines.Scan() {
			server.record(lines.Bytes())
		}
	}()
	return server, nil
}

func (s *scripted) record(line []byte) {
	s.lock.Lock()
	defer s.lock.Unlock()
	call := &seenCall{}
	if err := json.Unmarshal(line, call); err != nil {
		panic(err)
	}
	if call.Ended != nil {
		s.calls[*call.Ended].Outcome = call.Outcome
	} else {
		s.calls = append(s.calls, call)
	}
}

func (s *scripted) stop() {
	_ = s.process.Process.Kill()
	_ = s.process.Wait()
}

// all returns every call that bears this request id and has been answered by now.
func (s *scripted) all(t *testing.T, requestID string) []seenCall {
	t.Helper()
	mark := fmt.Sprint("mark ", time.Now().UnixNano())
	if _, err := connect(t, s.address).Health(named(t, mark)); err != nil {
		t.Fatal(err)
	}
	s.seen(t, mark, 1) // the server tells of calls in their order
	return s.seen(t, requestID, 0)
}

// seen returns the calls that bear this request id, once so many have come and ended.
func (s *scripted) seen(t *testing.T, requestID string, count int) []seenCall {
	t.Helper()
	for range 500 {
		s.lock.Lock()
		var found []seenCall
		ended := true
		for _, call := range s.calls {
			if call.Metadata["x-request-id"] == requestID {
				found = append(found, *call)
				ended = ended && call.Outcome != ""
			}
		}
		s.lock.Unlock()
		if len(found) >= count && ended {
			return found
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d ended calls of %s have not come", count, requestID)
	return nil
}

// start returns the shared server and a client of its own for a test.
func start(t *testing.T, options ...headgate.Option) (*scripted, *headgate.Client) {
	t.Helper()
	if _, err := os.Stat(python()); err != nil && os.Getenv("CI") != "true" {
		t.Skipf("%v: run make venv", err)
	}
	server, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return server, connect(t, server.address, options...)
}

func connect(t *testing.T, address string, options ...headgate.Option) *headgate.Client {
	t.Helper()
	client, err := headgate.New(address, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// named is a context whose calls the server can be asked for.
func named(t *testing.T, id string) context.Context {
	return headgate.WithRequestID(t.Context(), id)
}
