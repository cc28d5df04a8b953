/* What an ExHook answer costs where nothing is done but HTTP/2: the yardstick of benchmarks/session_cost.py and of the
   listener's benchmark. nghttp2, one thread, one constant answer to every call, no checks of gRPC's rules.

     bare_server PORT ANSWER_HEX              serve on 127.0.0.1:PORT (0: the system's choice) and print the port
     bare_server --replay FILE ANSWER_HEX     read a recorded connection, once, from memory, and print what that cost

   A recording is a run of reads, each behind its length in four bytes, big end first. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FIELD(name, value)                                                                                             \
  {                                                                                                                    \
    (uint8_t *)name, (uint8_t *)value, sizeof(name) - 1, sizeof(value) - 1,                                            \
        NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE                                                   \
  }

enum { EVENTS = 64, READ_BYTES = 262144, WRITE_BYTES = 1 << 20 };

static const nghttp2_nv HEAD[] = {FIELD(":status", "200"), FIELD("content-type", "application/grpc")};
static const nghttp2_nv TRAILER[] = {FIELD("grpc-status", "0")};
static uint8_t answer[4096];
static size_t answer_bytes;
static uint64_t answered;
static uint8_t out[WRITE_BYTES];

static void die(const char *what) {
  perror(what);
  exit(1);
}

static ssize_t read_answer(nghttp2_session *session, int32_t stream_id, uint8_t *room, size_t room_bytes,
                           uint32_t *flags, nghttp2_data_source *source, void *user_data) {
  (void)source, (void)user_data;
  if (room_bytes < answer_bytes) {
    return NGHTTP2_ERR_CALLBACK_FAILURE;
  }
  memcpy(room, answer, answer_bytes);
  *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
  return nghttp2_submit_trailer(session, stream_id, TRAILER, 1) ? NGHTTP2_ERR_CALLBACK_FAILURE : (ssize_t)answer_bytes;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_bytes,
                     const uint8_t *value, size_t value_bytes, uint8_t flags, void *user_data) {
  static volatile size_t path_bytes; /* the least that a server must look at */
  (void)session, (void)frame, (void)flags, (void)user_data, (void)value;
  if (name_bytes == 5 && memcmp(name, ":path", 5) == 0) {
    path_bytes = value_bytes;
  }
  return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data) {
  static const nghttp2_data_provider provider = {{0}, read_answer};
  (void)user_data;
  if ((frame->hd.type == NGHTTP2_DATA || frame->hd.type == NGHTTP2_HEADERS) &&
      frame->hd.flags & NGHTTP2_FLAG_END_STREAM) {
    answered++;
    return nghttp2_submit_response(session, frame->hd.stream_id, HEAD, 2, &provider) ? NGHTTP2_ERR_CALLBACK_FAILURE : 0;
  }
  return 0;
}

static nghttp2_session *open_session(void) {
  static nghttp2_session_callbacks *callbacks;
  static nghttp2_option *option;
  static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, 0x7fffffff},
                                                    {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, 8 << 20},
                                                    {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1}};
  nghttp2_session *session;
  if (!callbacks) {
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
    nghttp2_option_new(&option);
    nghttp2_option_set_no_closed_streams(option, 1);
  }
  if (nghttp2_session_server_new2(&session, callbacks, NULL, option) ||
      nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, 3) ||
      nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, 16 << 20)) {
    die("nghttp2");
  }
  return session;
}

/* Fills `out` with what may be sent, all in one; -1 where the connection is over. */
static ssize_t collect(nghttp2_session *session) {
  size_t filled = 0;
  const uint8_t *frame;
  ssize_t length;
  while (filled < WRITE_BYTES - 32768 && (length = nghttp2_session_mem_send(session, &frame)) > 0) {
    memcpy(out + filled, frame, (size_t)length);
    filled += (size_t)length;
  }
  return length < 0 ? -1 : (ssize_t)filled;
}

static void replay(const char *path) {
  FILE *file = fopen(path, "rb");
  long size;
  uint8_t *recording, *at;
  uint64_t sent = 0;
  struct timespec start, end;
  nghttp2_session *session = open_session();
  if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) <= 0) {
    die(path);
  }
  rewind(file);
  recording = malloc((size_t)size);
  if (!recording || fread(recording, 1, (size_t)size, file) != (size_t)size) {
    die(path);
  }
  fclose(file);
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
  for (at = recording; at < recording + size;) {
    size_t length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | at[3];
    ssize_t filled;
    if (nghttp2_session_mem_recv(session, at + 4, length) < 0 || (filled = collect(session)) < 0) {
      die("session");
    }
    sent += (uint64_t)filled;
    at += 4 + length;
  }
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
  printf("{\"calls\": %llu, \"bytes_sent\": %llu, \"cpu_s\": %.9f}\n", (unsigned long long)answered,
         (unsigned long long)sent, (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec));
  nghttp2_session_del(session);
  free(recording);
}

struct connection {
  int fd;
  nghttp2_session *session;
};

static int step(struct connection *connection) {
  static uint8_t in[READ_BYTES];
  ssize_t length = read(connection->fd, in, sizeof(in));
  ssize_t filled, written, at;
  if (length <= 0 || nghttp2_session_mem_recv(connection->session, in, (size_t)length) < 0) {
    return -1;
  }
  while ((filled = collect(connection->session)) > 0) {
    for (at = 0; at < filled; at += written) {
      if ((written = write(connection->fd, out + at, (size_t)(filled - at))) < 0) {
        return -1;
      }
    }
  }
  return filled < 0 || !nghttp2_session_want_read(connection->session) ? -1 : 0;
}

static void serve(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  socklen_t address_bytes = sizeof(address);
  int on = 1, index, ready;
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  int epoll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN}, events[EVENTS];
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128) ||
      getsockname(listener, (struct sockaddr *)&address, &address_bytes)) {
    die("listen");
  }
  epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (;;) {
    ready = epoll_wait(epoll, events, EVENTS, -1);
    for (index = 0; index < ready; index++) {
      struct connection *connection = events[index].data.ptr;
      if (connection) {
        if (step(connection) < 0) {
          close(connection->fd);
          nghttp2_session_del(connection->session);
          free(connection);
        }
        continue;
      }
      connection = malloc(sizeof(*connection));
      if (!connection || (connection->fd = accept(listener, NULL, NULL)) < 0) {
        die("accept");
      }
      setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      connection->session = open_session();
      event.data.ptr = connection;
      epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
    }
  }
}

int main(int argc, char **argv) {
  const char *hex = argc > 2 ? argv[argc - 1] : "";
  size_t length = strlen(hex) / 2;
  int replaying = argc == 4 && strcmp(argv[1], "--replay") == 0;
  if ((argc != 3 && !replaying) || length > sizeof(answer) - 5) {
    fprintf(stderr, "usage: bare_server PORT ANSWER_HEX | bare_server --replay FILE ANSWER_HEX\n");
    return 2;
  }
  for (size_t index = 0; index < length; index++) {
    unsigned byte;
    if (sscanf(hex + 2 * index, "%2x", &byte) != 1) {
      fprintf(stderr, "bare_server: the answer is no hexadecimal text\n");
      return 2;
    }
    answer[5 + index] = (uint8_t)byte;
  }
  answer[3] = (uint8_t)(length >> 8);
  answer[4] = (uint8_t)length;
  answer_bytes = length + 5;
  signal(SIGPIPE, SIG_IGN);
  if (replaying) {
    replay(argv[2]);
  } else {
    serve(atoi(argv[1]));
  }
  return 0;
}
