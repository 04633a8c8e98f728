# The program in a container, without anything of the host but a folder of tomograms:
#   docker build -t cryoshuffle .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" cryoshuffle denoise in.mrc out.mrc
# For an NVIDIA GPU give the build of PyTorch for it and let the container see it:
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 -t cryoshuffle .
#   docker run --gpus all --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" cryoshuffle denoise in.mrc out.mrc
FROM python:3.12-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY . .
RUN python -m venv /opt/cryoshuffle \
    && /opt/cryoshuffle/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.8" \
    && /opt/cryoshuffle/bin/pip install --no-cache-dir ".[cluster,zarr]"

FROM python:3.12-slim
COPY --from=build /opt/cryoshuffle /opt/cryoshuffle
USER 1000
WORKDIR /data
ENTRYPOINT ["/opt/cryoshuffle/bin/cryoshuffle"]
CMD ["--help"]
