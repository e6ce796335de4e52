// Package openapi holds the committed OpenAPI document, which is generated from the mounted operations (make generate) and
// served as it is.
package openapi

import _ "embed"

// Document is OpenAPI 3.1 in JSON.
//
//go:embed openapi.json
var Document []byte
