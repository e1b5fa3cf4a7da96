package boot

import "runtime"

// Program is the emulator of machines like this one.
var Program = map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
