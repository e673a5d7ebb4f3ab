package headgate

import (
	"fmt"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	headgatev1 "headgate.dev/go/headgate/v1"
)

// Ask returns a request of one user turn: text, and images and files beside it. Set its other fields as you like.
func Ask(model, text string, more ...*headgatev1.Part) *headgatev1.GenerateRequest {
	return Request(model, User(text, more...))
}

// Request returns a request of a conversation.
func Request(model string, messages ...*headgatev1.Message) *headgatev1.GenerateRequest {
	return &headgatev1.GenerateRequest{Model: model, Messages: messages}
}

// System returns the operator's instructions.
func System(text string) *headgatev1.Message {
	return message(headgatev1.Role_ROLE_SYSTEM, text)
}

// User returns a turn of the end user: text, and images and files beside it.
func User(text string, more ...*headgatev1.Part) *headgatev1.Message {
	return message(headgatev1.Role_ROLE_USER, text, more...)
}

// Assistant returns a turn of the model that was not generated here; [Answer.Message] is one that was.
func Assistant(text string) *headgatev1.Message {
	return message(headgatev1.Role_ROLE_ASSISTANT, text)
}

// Text returns a part of text.
func Text(text string) *headgatev1.Part {
	return &headgatev1.Part{Content: &headgatev1.Part_Text{Text: text}}
}

// Image returns an image of these bytes; its type is read from them.
func Image(data []byte) (*headgatev1.Part, error) {
	mimeType := http.DetectContentType(data)
	if !strings.HasPrefix(mimeType, "image/") {
		return nil, fmt.Errorf("headgate: these bytes look like %s, not like an image; use Media", mimeType)
	}
	return Media(mimeType, data), nil
}

// Media returns an image, audio, video or document of these bytes.
func Media(mimeType string, data []byte) *headgatev1.Part {
	return mediaPart(&headgatev1.Media{MimeType: mimeType, Source: &headgatev1.Media_Data{Data: data}})
}

// URL returns an image, audio, video or document that the vendor, never the gateway, fetches from an address. An empty
// mimeType is guessed from the address.
func URL(uri, mimeType string) *headgatev1.Part {
	if mimeType == "" {
		path, _, _ := strings.Cut(uri, "?")
		mimeType = typeByName(path)
	}
	return mediaPart(&headgatev1.Media{MimeType: mimeType, Source: &headgatev1.Media_Uri{Uri: uri}})
}

// File returns an image, audio, video or document read from a file; its type is read from the name, or else the bytes.
func File(path string) (*headgatev1.Part, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("headgate: %w", err)
	}
	mimeType := typeByName(path)
	if mimeType == "" {
		mimeType, _, _ = strings.Cut(http.DetectContentType(data), ";")
	}
	part := Media(mimeType, data)
	part.GetMedia().Filename = filepath.Base(path)
	return part, nil
}

func message(role headgatev1.Role, text string, more ...*headgatev1.Part) *headgatev1.Message {
	return &headgatev1.Message{Role: role, Parts: append([]*headgatev1.Part{Text(text)}, more...)}
}

func mediaPart(media *headgatev1.Media) *headgatev1.Part {
	return &headgatev1.Part{Content: &headgatev1.Part_Media{Media: media}}
}

func typeByName(name string) string {
	mimeType, _, _ := strings.Cut(mime.TypeByExtension(filepath.Ext(name)), ";")
	return mimeType
}
