// This file is empty. That it is there lets enter.go declare functions without
// a body, which the linker finds in the runtime.
