#!/usr/bin/env bash
# setup.sh FOLDER [PYTHON]: an environment with PyTorch's CUDA build (4.6 GB, some 4 minutes) and a CUDA driver that computes
# nothing, so that the CUDA path of llamactl runs on a machine without a GPU. Made again when what it is made from changes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); to=$(mkdir -p "$1" && cd "$1" && pwd); python=${2:-python3}
made_from=$(cat "$here/../../../pyproject.toml" "$here/../../../constraints.txt" "$here"/*.* | sha256sum)
[ "$(cat "$to/ready" 2>/dev/null)" = "$made_from" ] && exit 0
[ -x "$to/venv/bin/python" ] || "$python" -m venv "$to/venv"
"$to/venv/bin/pip" install --quiet torch==2.11.0
"$to/venv/bin/pip" install --quiet --no-deps --target "$to/headers" nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
grep -v '^torch==' "$here/../../../constraints.txt" >"$to/constraints.txt"
"$to/venv/bin/pip" install --quiet --constraint "$to/constraints.txt" --editable "$here/../../.."
site=$("$to/venv/bin/python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parent.parent)')
mkdir -p "$to/lib" "$to/build"; cd "$to/build"
include="-I$site/nvidia/cu13/include -I$to/headers/nvidia/cu13/include -I$here/inc"
nccl=$(dirname "$(find "$site/nvidia" -name nccl.h | head -n 1)")
gcc -shared -fPIC -O1 -w $include -c "$here/fakecuda.c" -o fakecuda.o
nm -g --defined-only fakecuda.o | awk '{print $3}' | sort -u >have.txt
# All that PyTorch and Triton link to and that the driver does not define answers with success and does nothing.
{ cat "$here/triton_want.txt"
  for l in libtorch_cuda.so libc10_cuda.so libtorch_python.so libcaffe2_nvrtc.so libtorch_cuda_linalg.so libtorch_nvshmem.so; do
    nm -D --undefined-only "$site/torch/lib/$l" | awk '{print $2}' | sed 's/@.*//'
  done | grep -E '^(__cuda|cuda[A-Z]|cublas|cu[A-Z])' | grep -vE '^cuFile|^cuTensorNet'; } | sort -u >want.txt
{ echo '#include <stdio.h>'; echo '#include <stdlib.h>'
  comm -13 have.txt want.txt | while read -r s; do
    echo "long $s(void){ if(getenv(\"FAKE_DEBUG\")) fprintf(stderr,\"stub $s\\n\"); return 0; }"
  done; } >stubs.c
gcc -shared -fPIC -O1 -w fakecuda.o stubs.c -o "$to/lib/libcuda.so.1" -Wl,-soname,libcuda.so.1 -ldl -lpthread
ln -sf libcuda.so.1 "$to/lib/libcuda.so"
gcc -shared -fPIC -O1 -w $include -I"$nccl" "$here/fakenccl.c" -o "$to/lib/libfakenccl.so"
"$here/run.sh" "$to" python -c 'import torch; assert torch.cuda.is_available()'
echo "$made_from" >"$to/ready"
