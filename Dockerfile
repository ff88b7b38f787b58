# docker build -t roster --build-arg VERSION=v1.2.3 .

FROM golang:1.26 AS build
WORKDIR /src
# The modules change less often than the code: their layer is built again only with go.mod or go.sum.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /roster .

# Static: CA certificates, time zones and a user; no shell, no package manager.
FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /roster /roster
USER 65532
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["/roster", "healthcheck"]
ENTRYPOINT ["/roster"]
CMD ["serve"]
