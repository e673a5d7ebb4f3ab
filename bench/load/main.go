// A load client: calls a gRPC server with requests that were serialised beforehand, or a vendor over HTTP, at a
// rate (open loop) or with so many callers at once (closed loop), and prints one JSON object of what it saw.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// deadline is what callers give each call, as well-behaved ones do; no run takes so long.
const deadline = 10 * time.Minute

var (
	kind        = flag.String("kind", "unary", "unary, stream, http, http-stream, cancel or hold")
	target      = flag.String("target", "", "HOST:PORT of the gRPC server, or URL for http kinds")
	method      = flag.String("method", "", "full name of the RPC")
	requestFile = flag.String("request", "", "file with the serialised request, without its model")
	model       = flag.String("model", "", "model to ask for: field 1 of the request")
	vendor      = flag.String("vendor", "", "URL of the fake vendor, which knows when connections were closed")
	headers     = flag.String("metadata", "", "NAME=VALUE,... sent with each call")
	connections = flag.Int("connections", 8, "HTTP/2 connections")
	rate        = flag.Float64("rate", 0, "calls a second; 0 for a closed loop")
	callers     = flag.Int("callers", 32, "callers of the closed loop")
	count       = flag.Int("count", 0, "end after so many calls instead of after the duration")
	warmup      = flag.Duration("warmup", time.Second, "time before the window")
	duration    = flag.Duration("duration", 5*time.Second, "the window that is measured")
	serverPID   = flag.Int("server", 0, "process whose CPU time is measured")
	vendorPID   = flag.Int("vendor-process", 0, "process of the fake vendor")
)

// Result is what one run saw. Times are microseconds; CPU is that of the server process.
type Result struct {
	Calls         int     `json:"calls"`
	Errors        int     `json:"errors"`
	FirstError    string  `json:"first_error"`
	PerSecond     float64 `json:"per_second"`
	CPUPerCall    float64 `json:"cpu_per_call"`
	Messages      float64 `json:"messages_per_call"`
	P50           float64 `json:"p50"`
	P99           float64 `json:"p99"`
	FirstP50      float64 `json:"first_p50"`
	FirstP99      float64 `json:"first_p99"`
	MemoryPerCall float64 `json:"memory_per_call"`
	ServerCores   float64 `json:"server_cores"`
	ClientCores   float64 `json:"client_cores"`
	VendorCores   float64 `json:"vendor_cores"`
	OtherCores    float64 `json:"other_cores"`
}

// A call is made once and tells when its first text came, and how many messages.
type call func(ctx context.Context) (first time.Duration, messages int, err error)

func main() {
	flag.Parse()
	var result Result
	switch *kind {
	case "unary":
		result = run(unary(dial(), request(*model)))
	case "stream":
		result = run(stream(dial(), request(*model)))
	case "http", "http-stream":
		body, err := os.ReadFile(*requestFile)
		check(err)
		result = run(overHTTP(body))
	case "cancel":
		result = cancels(dial())
	case "hold":
		result = hold(dial())
	default:
		log.Fatalf("unknown kind %q", *kind)
	}
	check(json.NewEncoder(os.Stdout).Encode(result))
}

// run makes the calls and measures those that end within the window.
func run(one call) Result {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var seen tally
	var running sync.WaitGroup
	call := func() {
		began := time.Now()
		first, messages, err := one(ctx)
		if ctx.Err() == nil {
			seen.add(time.Since(began), first, messages, err)
		}
	}
	switch {
	case *count > 0:
		return runCount(call, &seen)
	case *rate > 0:
		running.Go(func() {
			interval := time.Duration(float64(time.Second) / *rate)
			for next := time.Now(); ctx.Err() == nil; next = next.Add(interval) {
				time.Sleep(time.Until(next))
				running.Go(call)
			}
		})
	default:
		for range *callers {
			running.Go(func() {
				for ctx.Err() == nil {
					call()
				}
			})
		}
	}
	time.Sleep(*warmup)
	seen.reset()
	before := read()
	time.Sleep(*duration)
	result := seen.result(before, read())
	cancel()
	running.Wait()
	return result
}

func runCount(call func(), seen *tally) Result {
	var left atomic.Int64
	left.Store(int64(*count))
	before := read()
	var running sync.WaitGroup
	for range *callers {
		running.Go(func() {
			for left.Add(-1) >= 0 {
				call()
			}
		})
	}
	running.Wait()
	return seen.result(before, read())
}

// cancels measures from a caller's cancel until the vendor sees its connection closed: after a few events for the
// model `endless`, before the headers for `silent`.
func cancels(next func() *grpc.ClientConn) Result {
	var seen tally
	before := read()
	for number := range *count {
		id := fmt.Sprintf("%d-%d", os.Getpid(), number)
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		opened := open(ctx, next(), request(*model+"-"+id))
		if strings.HasSuffix(*model, "silent") {
			time.Sleep(20 * time.Millisecond)
		} else {
			for range 8 {
				var message []byte
				check(opened.RecvMsg(&message))
			}
		}
		began := time.Now().UnixNano()
		cancel()
		response, err := http.Get(*vendor + "/closed/" + id)
		check(err)
		body, err := io.ReadAll(response.Body)
		check(err)
		closed, err := strconv.ParseInt(string(body), 10, 64)
		check(err)
		seen.add(time.Duration(closed-began), 0, 0, nil)
	}
	return seen.result(before, read())
}

// hold opens streams that stay silent after their first text, and tells what memory one costs the server.
func hold(next func() *grpc.ClientConn) Result {
	var seen tally
	before, memory := read(), resident(*serverPID)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for range *count {
		began := time.Now()
		opened := open(ctx, next(), request(*model))
		_, err := untilText(opened)
		seen.add(time.Since(began), 0, 0, err)
	}
	result := seen.result(before, read())
	result.MemoryPerCall = float64(resident(*serverPID)-memory) / float64(*count)
	return result
}

func unary(next func() *grpc.ClientConn, request []byte) call {
	return func(ctx context.Context) (time.Duration, int, error) {
		var answer []byte
		err := next().Invoke(outgoing(ctx), *method, &request, &answer)
		if err == nil && len(answer) == 0 {
			err = fmt.Errorf("the answer is empty")
		}
		return 0, 1, err
	}
}

func stream(next func() *grpc.ClientConn, request []byte) call {
	return func(ctx context.Context) (time.Duration, int, error) {
		began := time.Now()
		opened := open(ctx, next(), request)
		messages, err := untilText(opened)
		first := time.Since(began)
		for err == nil {
			var message []byte
			if err = opened.RecvMsg(&message); err == nil {
				messages++
			}
		}
		if err == io.EOF {
			err = nil
		}
		return first, messages, err
	}
}

func overHTTP(body []byte) call {
	client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1000}}
	return func(ctx context.Context) (time.Duration, int, error) {
		began := time.Now()
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, *target, bytes.NewReader(body))
		if err != nil {
			return 0, 0, err
		}
		request.Header.Set("content-type", "application/json")
		response, err := client.Do(request)
		if err != nil {
			return 0, 0, err
		}
		defer response.Body.Close()
		if _, err := io.ReadFull(response.Body, make([]byte, 1)); err != nil {
			return 0, 0, err
		}
		first := time.Since(began)
		_, err = io.Copy(io.Discard, response.Body)
		return first, 1, err
	}
}

func open(ctx context.Context, connection *grpc.ClientConn, request []byte) grpc.ClientStream {
	opened, err := connection.NewStream(outgoing(ctx), &grpc.StreamDesc{ServerStreams: true}, *method)
	if err == nil {
		err = opened.SendMsg(&request)
	}
	if err == nil {
		err = opened.CloseSend()
	}
	if err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
	return opened
}

// untilText reads up to the first message that begins with field 1, which is text_delta.
func untilText(opened grpc.ClientStream) (int, error) {
	if opened == nil {
		return 0, context.Canceled
	}
	for messages := 1; ; messages++ {
		var message []byte
		if err := opened.RecvMsg(&message); err != nil {
			return messages, err
		}
		if len(message) > 0 && message[0] == 0x0a {
			return messages, nil
		}
	}
}

// dial gives the connections in turn.
func dial() func() *grpc.ClientConn {
	dialled := make([]*grpc.ClientConn, *connections)
	for number := range dialled {
		connection, err := grpc.NewClient(*target,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)))
		check(err)
		dialled[number] = connection
	}
	var turn atomic.Uint64
	return func() *grpc.ClientConn { return dialled[turn.Add(1)%uint64(len(dialled))] }
}

func outgoing(ctx context.Context) context.Context {
	for pair := range strings.SplitSeq(*headers, ",") {
		if name, value, found := strings.Cut(pair, "="); found {
			ctx = metadata.AppendToOutgoingContext(ctx, name, value)
		}
	}
	return ctx
}

// request is the file's message with the model as its first field; the last value of a field is the one that counts.
func request(model string) []byte {
	message, err := os.ReadFile(*requestFile)
	check(err)
	if model == "" {
		return message
	}
	return append(append(message, 0x0a, byte(len(model))), model...)
}

// raw passes messages as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(message any) ([]byte, error) { return *message.(*[]byte), nil }

func (raw) Unmarshal(data []byte, message any) error {
	*message.(*[]byte) = data
	return nil
}

// tally collects what calls saw.
type tally struct {
	lock       sync.Mutex
	times      []time.Duration
	firsts     []time.Duration
	messages   int
	errors     int
	firstError error
}

func (t *tally) add(took, first time.Duration, messages int, err error) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if err != nil {
		t.errors++
		if t.firstError == nil {
			t.firstError = err
		}
		return
	}
	t.times = append(t.times, took)
	t.firsts = append(t.firsts, first)
	t.messages += messages
}

func (t *tally) reset() {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.times, t.firsts, t.messages = nil, nil, 0
}

func (t *tally) result(before, after reading) Result {
	t.lock.Lock()
	defer t.lock.Unlock()
	seconds := after.time.Sub(before.time).Seconds()
	calls := len(t.times)
	server := after.server - before.server
	result := Result{
		Calls:       calls,
		Errors:      t.errors,
		PerSecond:   float64(calls) / seconds,
		P50:         quantile(t.times, 0.50),
		P99:         quantile(t.times, 0.99),
		FirstP50:    quantile(t.firsts, 0.50),
		FirstP99:    quantile(t.firsts, 0.99),
		ServerCores: server.Seconds() / seconds,
		ClientCores: (after.client - before.client).Seconds() / seconds,
		VendorCores: (after.vendor - before.vendor).Seconds() / seconds,
	}
	if calls > 0 {
		result.CPUPerCall = server.Seconds() * 1e6 / float64(calls)
		result.Messages = float64(t.messages) / float64(calls)
	}
	if t.firstError != nil {
		result.FirstError = t.firstError.Error()
	}
	for pid, used := range after.others {
		result.OtherCores += (used - before.others[pid]).Seconds() / seconds
	}
	return result
}

func quantile(times []time.Duration, share float64) float64 {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return float64(times[int(share*float64(len(times)-1))].Nanoseconds()) / 1e3
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
