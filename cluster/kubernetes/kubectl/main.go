// kubectl as a program of its own: as one more name of the multi-call program it took 0.20 s of CPU for every call
// instead of 0.09, because all the servers' packages initialize themselves first.
package main

import (
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
)

func main() {
	// Its errors carry an exit status of their own (kubectl diff: 1 for a difference, more for a failure).
	util.CheckErr(cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()))
}
