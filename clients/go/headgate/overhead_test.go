package headgate_test

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"headgate.dev/go/headgate"
	headgatev1 "headgate.dev/go/headgate/v1"
)

// BenchmarkOverhead is what the client costs beside the generated stub, in CPU-µs of this process for each call, by
// turns against one scripted server in another process, and the median of their ratios. A call of the stub is what a
// program without the client would write: a deadline, a bearer token, a request id, and a stream's text joined.
func BenchmarkOverhead(b *testing.B) {
	server, err := startScripted("../../../bench/clients.json", "--quiet")
	if err != nil {
		b.Fatal(err)
	}
	defer server.stop()
	client, err := headgate.New(server.address, headgate.WithAPIKey("k"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	connection, err := grpc.NewClient(server.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	raw := rawCalls{headgatev1.NewInferenceServiceClient(connection)}
	ctx := context.Background()
	text := strings.Repeat("Say what a call costs. ", 30)
	ask := func(model string) *headgatev1.GenerateRequest {
		request := headgate.Ask(model, text)
		request.Config = &headgatev1.GenerationConfig{Temperature: proto.Float64(0.5)}
		return request
	}
	embed := func() *headgatev1.EmbedRequest {
		return headgate.Texts("embed", slices.Repeat([]string{"something to embed"}, 100)...)
	}
	compare(b, "unary", 300, func() error { return raw.generate(ask("plain")) }, func() error {
		_, err := client.Generate(ctx, ask("plain"))
		return err
	})
	compare(b, "stream", 60, func() error { return raw.stream(ask("stream")) }, func() error {
		var joined strings.Builder
		for piece, err := range client.Stream(ctx, ask("stream")).Text() {
			if err != nil {
				return err
			}
			joined.WriteString(piece)
		}
		return nil
	})
	compare(b, "embed", 100, func() error { return raw.embed(embed()) }, func() error {
		_, err := client.Embed(ctx, embed())
		return err
	})
}

func compare(b *testing.B, name string, calls int, byStub, byClient func() error) {
	b.Run(name, func(b *testing.B) {
		const rounds = 25
		cpu(b, calls, byStub)
		cpu(b, calls, byClient)
		var stubs, clients, ratios []float64
		for round := range rounds {
			var stub, client float64
			if round%2 == 0 { // the first of a round by turns
				stub, client = cpu(b, calls, byStub), cpu(b, calls, byClient)
			} else {
				client, stub = cpu(b, calls, byClient), cpu(b, calls, byStub)
			}
			stubs, clients, ratios = append(stubs, stub), append(clients, client), append(ratios, client/stub)
		}
		b.ReportMetric(median(stubs), "stub-cpu-µs/call")
		b.ReportMetric(median(clients), "client-cpu-µs/call")
		b.ReportMetric(median(ratios), "ratio")
		b.ReportMetric(0, "ns/op")
	})
}

func cpu(b *testing.B, calls int, call func() error) float64 {
	start := cpuTime()
	for range calls {
		if err := call(); err != nil {
			b.Fatal(err)
		}
	}
	return float64((cpuTime() - start).Microseconds()) / float64(calls)
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(numbers []float64) float64 {
	slices.Sort(numbers)
	return numbers[len(numbers)/2]
}

type rawCalls struct {
	stub headgatev1.InferenceServiceClient
}

func (r rawCalls) context() (context.Context, context.CancelFunc) {
	ctx := metadata.AppendToOutgoingContext(context.Background(),
		"authorization", "Bearer k", "x-request-id", "0123456789abcdef0123456789abcdef")
	return context.WithTimeout(ctx, time.Minute)
}

func (r rawCalls) generate(request *headgatev1.GenerateRequest) error {
	ctx, cancel := r.context()
	defer cancel()
	_, err := r.stub.Generate(ctx, request)
	return err
}

func (r rawCalls) stream(request *headgatev1.GenerateRequest) error {
	ctx, cancel := r.context()
	defer cancel()
	call, err := r.stub.StreamGenerate(ctx, request)
	if err != nil {
		return err
	}
	var joined strings.Builder
	for {
		event, err := call.Recv()
		if err != nil {
			break
		}
		joined.WriteString(event.GetTextDelta())
	}
	return nil
}

// embed decodes as the contract says: row-major, little-endian.
func (r rawCalls) embed(request *headgatev1.EmbedRequest) error {
	ctx, cancel := r.context()
	defer cancel()
	answer, err := r.stub.Embed(ctx, request)
	if err != nil {
		return err
	}
	flat := make([]float32, 0, len(answer.Data)/4)
	for data := answer.Data; len(data) >= 4; data = data[4:] {
		flat = append(flat, math.Float32frombits(binary.LittleEndian.Uint32(data)))
	}
	_ = flat
	return nil
}
