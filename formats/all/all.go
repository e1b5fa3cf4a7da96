// Package all is the one ordered table of image formats.
package all

import (
	"vmkit/formats"
	"vmkit/formats/ova"
	"vmkit/formats/qcow"
	"vmkit/formats/qcow2"
	"vmkit/formats/raw"
	"vmkit/formats/vdi"
	"vmkit/formats/vhdx"
	"vmkit/formats/vmdk"
	"vmkit/formats/vpc"
)

// Formats lists every format. Their order decides nothing: all probes run, and two hits are an error.
var Formats = []formats.Format{
	raw.Format,
	qcow2.Format,
	qcow.Format,
	vmdk.Format,
	vdi.Format,
	vpc.Format,
	vhdx.Format,
	ova.Format,
}
