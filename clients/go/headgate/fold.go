package headgate

import (
	"bytes"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// Event is one event of a stream; switch on the type of its Event field.
type Event = headgatev1.StreamGenerateResponse

// Fold returns the answer that events amount to, whole or as far as it came. Unknown events are ignored.
func Fold(events iter.Seq[*Event]) *headgatev1.GenerateResponse {
	folded := newFold()
	for event := range events {
		folded.add(event)
	}
	return folded.response()
}

// fold collects a stream. Text is joined once, at the end: appending to it event by event would copy it each time.
type fold struct {
	head       *headgatev1.GenerateResponse
	candidates map[uint32]*foldedCandidate
	complete   bool
}

type foldedCandidate struct {
	candidate *headgatev1.Candidate
	parts     map[uint32]*foldedPart
}

type foldedPart struct {
	part       *headgatev1.Part
	text       strings.Builder // of whichever kind the part is
	data       bytes.Buffer
	transcript strings.Builder
}

func newFold() *fold {
	return &fold{head: &headgatev1.GenerateResponse{}, candidates: map[uint32]*foldedCandidate{}}
}

func (f *fold) add(event *Event) {
	switch kind := event.Event.(type) {
	case nil: // an event of a newer server
	case *headgatev1.StreamGenerateResponse_GenerationStart:
		f.start(kind.GenerationStart)
	case *headgatev1.StreamGenerateResponse_GenerationEnd:
		f.end(kind.GenerationEnd)
	case *headgatev1.StreamGenerateResponse_CandidateEnd:
		candidate := f.candidate(event.CandidateIndex).candidate
		candidate.Finish = kind.CandidateEnd.Finish
		candidate.ProviderMetadata = kind.CandidateEnd.ProviderMetadata
	case *headgatev1.StreamGenerateResponse_PartStart:
		part, _ := proto.Clone(kind.PartStart.Part).(*headgatev1.Part)
		f.candidate(event.CandidateIndex).parts[event.PartIndex] = &foldedPart{part: part}
	default:
		f.part(event).add(event)
	}
}

func (f *fold) start(start *headgatev1.GenerationStart) {
	f.head.Id = start.Id
	f.head.Model = start.Model
	f.head.Provider = start.Provider
	f.head.ProviderResponseId = start.ProviderResponseId
	f.head.CreateTime = start.CreateTime
	f.head.Warnings = append(f.head.Warnings, start.Warnings...)
}

func (f *fold) end(end *headgatev1.GenerationEnd) {
	f.complete = !end.Partial
	f.head.Usage = end.Usage
	f.head.Cost = end.Cost
	f.head.Attempts = append(f.head.Attempts, end.Attempts...)
	f.head.Warnings = append(f.head.Warnings, end.Warnings...)
	f.head.ServiceTier = end.ServiceTier
	f.head.SystemFingerprint = end.SystemFingerprint
	f.head.ProviderMetadata = end.ProviderMetadata
}

func (f *fold) candidate(index uint32) *foldedCandidate {
	if f.candidates[index] == nil {
		message := &headgatev1.Message{Role: headgatev1.Role_ROLE_ASSISTANT}
		candidate := &headgatev1.Candidate{Index: index, Message: message}
		f.candidates[index] = &foldedCandidate{candidate, map[uint32]*foldedPart{}}
	}
	return f.candidates[index]
}

func (f *fold) part(event *Event) *foldedPart {
	parts := f.candidate(event.CandidateIndex).parts
	if parts[event.PartIndex] == nil {
		parts[event.PartIndex] = &foldedPart{part: &headgatev1.Part{}}
	}
	return parts[event.PartIndex]
}

// response is the answer so far; adding may go on after it.
func (f *fold) response() *headgatev1.GenerateResponse {
	answer, _ := proto.Clone(f.head).(*headgatev1.GenerateResponse)
	for _, index := range slices.Sorted(maps.Keys(f.candidates)) {
		folded := f.candidates[index]
		candidate, _ := proto.Clone(folded.candidate).(*headgatev1.Candidate)
		for _, index := range slices.Sorted(maps.Keys(folded.parts)) {
			candidate.Message.Parts = append(candidate.Message.Parts, folded.parts[index].joined())
		}
		answer.Candidates = append(answer.Candidates, candidate)
	}
	return answer
}

func (p *foldedPart) add(event *Event) {
	if event.Logprobs != nil {
		if p.part.Logprobs == nil {
			p.part.Logprobs = &headgatev1.LogProbs{}
		}
		p.part.Logprobs.Tokens = append(p.part.Logprobs.Tokens, event.Logprobs.Tokens...)
	}
	switch kind := event.Event.(type) {
	case *headgatev1.StreamGenerateResponse_TextDelta:
		p.text.WriteString(kind.TextDelta)
	case *headgatev1.StreamGenerateResponse_ReasoningDelta:
		p.text.WriteString(kind.ReasoningDelta)
	case *headgatev1.StreamGenerateResponse_ArgumentsDelta:
		p.text.WriteString(kind.ArgumentsDelta)
	case *headgatev1.StreamGenerateResponse_RefusalDelta:
		p.text.WriteString(kind.RefusalDelta)
	case *headgatev1.StreamGenerateResponse_MediaDelta:
		p.data.Write(kind.MediaDelta.Data)
		p.transcript.WriteString(kind.MediaDelta.Transcript)
	case *headgatev1.StreamGenerateResponse_Citation:
		p.part.Citations = append(p.part.Citations, kind.Citation)
	case *headgatev1.StreamGenerateResponse_PartEnd:
		p.end(kind.PartEnd)
	}
}

func (p *foldedPart) end(end *headgatev1.PartEnd) {
	if len(end.Signature) > 0 {
		p.part.Signature = end.Signature
	}
	if end.Issuer != "" {
		p.part.Issuer = end.Issuer
	}
	if end.ItemId != "" {
		p.part.ItemId = end.ItemId
	}
	if len(end.ProviderMetadata) > 0 {
		if p.part.ProviderMetadata == nil {
			p.part.ProviderMetadata = map[string]string{}
		}
		maps.Copy(p.part.ProviderMetadata, end.ProviderMetadata)
	}
	p.part.Incomplete = end.Incomplete
}

func (p *foldedPart) joined() *headgatev1.Part {
	part, _ := proto.Clone(p.part).(*headgatev1.Part)
	switch content := part.Content.(type) {
	case *headgatev1.Part_Text:
		content.Text += p.text.String()
	case *headgatev1.Part_Reasoning:
		content.Reasoning.Text += p.text.String()
	case *headgatev1.Part_ToolCall:
		content.ToolCall.Arguments += p.text.String()
	case *headgatev1.Part_Refusal:
		content.Refusal += p.text.String()
	case *headgatev1.Part_Media:
		if p.data.Len() > 0 {
			data := append(slices.Clone(content.Media.GetData()), p.data.Bytes()...)
			content.Media.Source = &headgatev1.Media_Data{Data: data}
		}
		content.Media.Transcript += p.transcript.String()
	}
	return part
}
