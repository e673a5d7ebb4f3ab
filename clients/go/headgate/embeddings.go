package headgate

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	headgatev1 "headgate.dev/go/headgate/v1"
)

const (
	// DefaultEmbedBatch is how many inputs one call has at most: with 3072 dimensions, 12 MB of answer.
	DefaultEmbedBatch = 1024
	// maxEmbedBytes is how large a call of several inputs is at most.
	maxEmbedBytes = 4 << 20
	// DefaultEmbedConcurrency is how many of the calls for one batch run at once.
	DefaultEmbedConcurrency = 4
)

type embedBatch struct{ inputs, concurrency int }

// Embeddings are one vector for each input, in the inputs' order.
type Embeddings struct {
	// Vectors share one array, row by row. Numbers of INT8 and FLOAT16 are widened, not scaled.
	Vectors    [][]float32
	Dimensions int
	// Model and Provider answered; Usage and Cost are sums over all calls, nil when unknown.
	Model, Provider string
	Usage           *headgatev1.Usage
	Cost            *headgatev1.Cost
	Attempts        []*headgatev1.Attempt
	Warnings        []*headgatev1.Warning
	// RequestIDs name the calls in the server's log, in the inputs' order.
	RequestIDs []string
}

// Texts returns a request for the embeddings of texts. Set its other fields as you like.
func Texts(model string, texts ...string) *headgatev1.EmbedRequest {
	request := &headgatev1.EmbedRequest{Model: model}
	for _, text := range texts {
		input := &headgatev1.EmbedInput{Input: &headgatev1.EmbedInput_Text{Text: text}}
		request.Inputs = append(request.Inputs, input)
	}
	return request
}

// Embed returns a vector for each input: all or nothing. Many inputs go in several calls, see [WithEmbedBatch].
func (c *Client) Embed(ctx context.Context, request *headgatev1.EmbedRequest) (*Embeddings, error) {
	batches := c.batch.split(request)
	answers := make([]*headgatev1.EmbedResponse, len(batches))
	ids := make([]string, len(batches))
	calls, ctx := errgroup.WithContext(ctx)
	calls.SetLimit(c.batch.concurrency)
	for i, batch := range batches {
		calls.Go(func() (err error) {
			answers[i], ids[i], err = unary(ctx, c, c.stub.Embed, batch)
			return err
		})
	}
	if err := calls.Wait(); err != nil {
		return nil, err
	}
	return joined(answers, ids, len(request.Inputs))
}

func (b embedBatch) split(request *headgatev1.EmbedRequest) []*headgatev1.EmbedRequest {
	if len(request.Inputs) <= b.inputs && proto.Size(request) <= maxEmbedBytes {
		return []*headgatev1.EmbedRequest{request}
	}
	shared := proto.CloneOf(request)
	inputs := shared.Inputs
	shared.Inputs = nil
	var batches []*headgatev1.EmbedRequest
	size := maxEmbedBytes
	for _, input := range inputs {
		size += proto.Size(input)
		if size > maxEmbedBytes || len(batches[len(batches)-1].Inputs) == b.inputs {
			batches = append(batches, proto.CloneOf(shared))
			size = proto.Size(input)
		}
		last := batches[len(batches)-1]
		last.Inputs = append(last.Inputs, input)
	}
	return batches
}

func joined(answers []*headgatev1.EmbedResponse, ids []string, inputs int) (*Embeddings, error) {
	first := answers[0]
	all := &Embeddings{
		Dimensions: int(first.Dimensions), Model: first.Model, Provider: first.Provider, RequestIDs: ids,
		Usage: first.Usage, Cost: first.Cost,
	}
	flat := make([]float32, 0, inputs*all.Dimensions)
	for i, answer := range answers {
		if answer.Dimensions != first.Dimensions {
			return nil, fmt.Errorf("headgate: vectors of %d and of %d dimensions", first.Dimensions, answer.Dimensions)
		}
		flat = appendNumbers(flat, answer)
		all.Attempts = append(all.Attempts, answer.Attempts...)
		for _, warning := range answer.Warnings {
			if !slices.ContainsFunc(all.Warnings, func(known *headgatev1.Warning) bool { return proto.Equal(known, warning) }) {
				all.Warnings = append(all.Warnings, warning)
			}
		}
		if i > 0 {
			all.Usage, all.Cost = sumUsage(all.Usage, answer.Usage), sumCost(all.Cost, answer.Cost)
		}
	}
	if len(flat) != inputs*all.Dimensions {
		return nil, fmt.Errorf("headgate: %d numbers for %d inputs of %d dimensions", len(flat), inputs, all.Dimensions)
	}
	all.Vectors = slices.Collect(slices.Chunk(flat, max(all.Dimensions, 1)))
	return all, nil
}

// appendNumbers decodes an answer's matrix, row-major and little-endian, or its lists.
func appendNumbers(flat []float32, answer *headgatev1.EmbedResponse) []float32 {
	for _, vector := range answer.Vectors {
		flat = append(flat, vector.Values...)
	}
	data := answer.Data
	switch answer.ElementType {
	case headgatev1.ElementType_ELEMENT_TYPE_INT8:
		for _, number := range data {
			flat = append(flat, float32(int8(number)))
		}
	case headgatev1.ElementType_ELEMENT_TYPE_FLOAT16:
		for ; len(data) >= 2; data = data[2:] {
			flat = append(flat, float32From16(binary.LittleEndian.Uint16(data)))
		}
	default:
		for ; len(data) >= 4; data = data[4:] {
			flat = append(flat, math.Float32frombits(binary.LittleEndian.Uint32(data)))
		}
	}
	return flat
}

// float32From16 widens an IEEE 754 binary16.
func float32From16(half uint16) float32 {
	sign, exponent, fraction := half>>15, half>>10&0x1f, float64(half&0x3ff)
	number := math.Ldexp(1+fraction/1024, int(exponent)-15)
	switch {
	case exponent == 0:
		number = math.Ldexp(fraction, -24)
	case exponent == 0x1f && fraction == 0:
		number = math.Inf(1)
	case exponent == 0x1f:
		number = math.NaN()
	}
	if sign == 1 {
		number = -number
	}
	return float32(number)
}

// sumUsage adds counts; what one call does not know is unknown in the sum.
func sumUsage(a, b *headgatev1.Usage) *headgatev1.Usage {
	if a == nil || b == nil {
		return nil
	}
	total := &headgatev1.Usage{Estimated: a.Estimated || b.Estimated}
	addNumbers(total.ProtoReflect(), a.ProtoReflect(), b.ProtoReflect(), protoreflect.Uint32Kind)
	return total
}

func sumCost(a, b *headgatev1.Cost) *headgatev1.Cost {
	if a == nil || b == nil || a.CurrencyCode != b.CurrencyCode {
		return nil
	}
	total := proto.CloneOf(a)
	addNumbers(total.ProtoReflect(), a.ProtoReflect(), b.ProtoReflect(), protoreflect.Int64Kind)
	return total
}

// addNumbers sets the fields of that kind which both have.
func addNumbers(total, a, b protoreflect.Message, kind protoreflect.Kind) {
	fields := total.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		known := !field.HasPresence() || a.Has(field) && b.Has(field)
		switch {
		case field.Kind() != kind || !known:
		case kind == protoreflect.Uint32Kind:
			total.Set(field, protoreflect.ValueOfUint32(uint32(a.Get(field).Uint()+b.Get(field).Uint())))
		default:
			total.Set(field, protoreflect.ValueOfInt64(a.Get(field).Int()+b.Get(field).Int()))
		}
	}
}
