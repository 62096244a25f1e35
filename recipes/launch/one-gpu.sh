#!/bin/sh
# A recipe on one GPU, or on a CPU if there is none. Run it again after an interruption: it goes on where it stopped.
#   recipes/launch/one-gpu.sh recipes/smollm2/extended.yaml
set -eu
recipe=${1:?usage: one-gpu.sh RECIPE}

lepta plan "$recipe"
lepta adapt "$recipe"
