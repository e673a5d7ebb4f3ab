// A vendor that costs next to nothing: every answer is made once, at the start, and written as it is.
//
// The model's name says what to answer: plain, burst, paced, embed; idle (one event, then nothing), endless-ID
// and silent-ID, for which GET /closed/ID tells, as soon as it is so, when the caller closed the connection.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	chunks     = 64
	pace       = 5 * time.Millisecond
	rows       = 100
	dimensions = 1536
)

// What api.openai.com sends beside the body's own headers.
const headers = "HTTP/1.1 200 OK\r\n" +
	"date: Mon, 21 Sep 2026 08:00:00 GMT\r\n" +
	"openai-organization: headgate\r\n" +
	"openai-processing-ms: 412\r\n" +
	"openai-project: proj_0123456789abcdefghijklmn\r\n" +
	"openai-version: 2020-10-01\r\n" +
	"x-ratelimit-limit-requests: 10000\r\n" +
	"x-ratelimit-limit-tokens: 30000000\r\n" +
	"x-ratelimit-remaining-requests: 9999\r\n" +
	"x-ratelimit-remaining-tokens: 29999765\r\n" +
	"x-ratelimit-reset-requests: 6ms\r\n" +
	"x-ratelimit-reset-tokens: 0s\r\n" +
	"x-request-id: req_0123456789abcdef0123456789abcdef\r\n" +
	"strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n" +
	"x-content-type-options: nosniff\r\n"

var (
	plain  = whole(completion())
	embed  = whole(embeddings())
	begin  = []byte(headers + "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
	events = chunkEvents()
	burst  = bytes.Join(append([][]byte{begin}, events...), nil)
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(connection)
	}
}

func serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReaderSize(connection, 16*1024)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		if id, asked := strings.CutPrefix(request.URL.Path, "/closed/"); asked {
			_, err = connection.Write(whole(fmt.Appendf(nil, "%d", endingOf(id).wait())))
		} else {
			err = answer(connection, reader, model(body))
		}
		if err != nil {
			return
		}
	}
}

func answer(connection net.Conn, reader *bufio.Reader, model string) error {
	behaviour, id, _ := strings.Cut(model, "-")
	switch behaviour {
	case "plain":
		_, err := connection.Write(plain)
		return err
	case "embed":
		_, err := connection.Write(embed)
		return err
	case "burst":
		_, err := connection.Write(burst)
		return err
	case "paced":
		return paced(connection, events)
	case "idle":
		if err := paced(connection, events[:1]); err != nil {
			return err
		}
		_, err := reader.Peek(1)
		return err
	case "endless":
		go untilClosed(reader, id)
		if _, err := connection.Write(begin); err != nil {
			return err
		}
		for {
			if _, err := connection.Write(events[1]); err != nil {
				return err
			}
			time.Sleep(pace)
		}
	case "silent":
		untilClosed(reader, id)
		return io.EOF
	}
	return fmt.Errorf("unknown model %q", model)
}

func paced(connection net.Conn, events [][]byte) error {
	next := time.Now()
	for number, event := range events {
		if number == 0 {
			event = append(begin[:len(begin):len(begin)], event...)
		} else {
			next = next.Add(pace)
			time.Sleep(time.Until(next))
		}
		if _, err := connection.Write(event); err != nil {
			return err
		}
	}
	return nil
}

// An ending is when the caller of one request closed its connection.
type ending struct {
	done chan struct{}
	at   int64
}

var (
	endings = map[string]*ending{}
	lock    sync.Mutex
)

func endingOf(id string) *ending {
	lock.Lock()
	defer lock.Unlock()
	if endings[id] == nil {
		endings[id] = &ending{done: make(chan struct{})}
	}
	return endings[id]
}

func (e *ending) wait() int64 {
	<-e.done
	return e.at
}

func untilClosed(reader *bufio.Reader, id string) {
	reader.Peek(1)
	e := endingOf(id)
	e.at = time.Now().UnixNano()
	close(e.done)
}

func model(body []byte) string {
	_, after, _ := bytes.Cut(body, []byte(`"model":"`))
	name, _, _ := bytes.Cut(after, []byte(`"`))
	return string(name)
}

func whole(body []byte) []byte {
	return fmt.Appendf(nil, "%scontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", headers, len(body), body)
}

func completion() []byte {
	return []byte(`{"id":"chatcmpl-C2yZ0000000000000000000000000","object":"chat.completion","created":1790000000,` +
		`"model":"vendor-model-1","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat("The gateway answers. ", 7) +
		`","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":211,` +
		`"completion_tokens":41,"total_tokens":252,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},` +
		`"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,` +
		`"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_01234567"}`)
}

func chunkEvents() [][]byte {
	made := make([][]byte, 0, chunks)
	for number := range chunks {
		role := ""
		if number == 0 {
			role = `"role":"assistant",`
		}
		event := httpChunk(chunk(fmt.Sprintf(
			`[{"index":0,"delta":{%s"content":" word%d"},"logprobs":null,"finish_reason":null}]`, role, number), "null"))
		if number == chunks-1 {
			event = append(event, httpChunk(chunk(
				`[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]`, "null"))...)
			event = append(event, httpChunk(chunk(
				`[]`, `{"prompt_tokens":211,"completion_tokens":64,"total_tokens":275}`))...)
			event = append(event, httpChunk("[DONE]")...)
			event = append(event, "0\r\n\r\n"...)
		}
		made = append(made, event)
	}
	return made
}

func chunk(choices, usage string) string {
	return fmt.Sprintf(`{"id":"chatcmpl-C2yZ0000000000000000000000000","object":"chat.completion.chunk",`+
		`"created":1790000000,"model":"vendor-model-1","service_tier":"default",`+
		`"system_fingerprint":"fp_0123456789","choices":%s,"usage":%s}`, choices, usage)
}

func httpChunk(data string) []byte {
	event := "data: " + data + "\n\n"
	return fmt.Appendf(nil, "%x\r\n%s\r\n", len(event), event)
}

func embeddings() []byte {
	vector := make([]byte, 0, dimensions*4)
	for number := range dimensions {
		vector = binary.LittleEndian.AppendUint32(vector, math.Float32bits(1/float32(number+2)))
	}
	type row struct {
		Object    string `json:"object"`
		Index     int    `json:"index"`
		Embedding string `json:"embedding"`
	}
	data := make([]row, rows)
	for number := range data {
		data[number] = row{"embedding", number, base64.StdEncoding.EncodeToString(vector)}
	}
	body, err := json.Marshal(map[string]any{
		"object": "list", "data": data, "model": "vendor-embed-1",
		"usage": map[string]int{"prompt_tokens": 800, "total_tokens": 800},
	})
	if err != nil {
		log.Fatal(err)
	}
	return body
}
