package api

import _ "embed"

//go:embed openapi.yaml
var openAPI string

// OpenAPI returns the OpenAPI 3.1 document of the API, in YAML.
func OpenAPI() string { return openAPI }
