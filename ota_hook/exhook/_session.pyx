# cython: auto_pickle=False, autotestdict=False
"""A gRPC server's side of one HTTP/2 connection, sans I/O: bytes in, calls out, bytes out.

Owns the framing of unary gRPC calls over nghttp2, their bounds, and the promise that a conforming peer never sees a
RST_STREAM. It must not know sockets, event loops, settings, clocks, or what a call means: a path is looked up in the
table it was given. The stub beside this file is the contract. One thread at a time.
"""

from types import GenericAlias

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy


cdef extern from "sys/types.h":
    ctypedef long ssize_t


cdef extern from "nghttp2/nghttp2.h":
    ctypedef struct nghttp2_session
    ctypedef struct nghttp2_session_callbacks
    ctypedef struct nghttp2_option

    enum:
        NGHTTP2_FLAG_NONE
        NGHTTP2_FLAG_END_STREAM
        NGHTTP2_HEADERS
        NGHTTP2_DATA
        NGHTTP2_HCAT_REQUEST
        NGHTTP2_NV_FLAG_NONE
        NGHTTP2_NV_FLAG_NO_INDEX
        NGHTTP2_NV_FLAG_NO_COPY_NAME
        NGHTTP2_NV_FLAG_NO_COPY_VALUE
        NGHTTP2_DATA_FLAG_EOF
        NGHTTP2_DATA_FLAG_NO_END_STREAM
        NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
        NGHTTP2_PROTOCOL_ERROR
        NGHTTP2_INTERNAL_ERROR
        NGHTTP2_ENHANCE_YOUR_CALM
        NGHTTP2_ERR_CALLBACK_FAILURE
        NGHTTP2_ERR_FLOODED
        NGHTTP2_ERR_BAD_CLIENT_MAGIC
        NGHTTP2_ERR_NOMEM

    ctypedef struct nghttp2_frame_hd:
        int32_t stream_id
        uint8_t type
        uint8_t flags

    ctypedef struct nghttp2_headers:
        int cat

    ctypedef union nghttp2_frame:
        nghttp2_frame_hd hd
        nghttp2_headers headers

    ctypedef struct nghttp2_nv:
        uint8_t* name
        uint8_t* value
        size_t namelen
        size_t valuelen
        uint8_t flags

    ctypedef struct nghttp2_settings_entry:
        int32_t settings_id
        uint32_t value

    ctypedef union nghttp2_data_source:
        void* ptr

    ctypedef ssize_t (*nghttp2_data_source_read_callback)(
        nghttp2_session*, int32_t, uint8_t*, size_t, uint32_t*, nghttp2_data_source*, void*
    ) noexcept

    ctypedef struct nghttp2_data_provider:
        nghttp2_data_source source
        nghttp2_data_source_read_callback read_callback

    ctypedef int (*_on_frame)(nghttp2_session*, const nghttp2_frame*, void*) noexcept
    ctypedef int (*_on_header)(
        nghttp2_session*, const nghttp2_frame*, const uint8_t*, size_t, const uint8_t*, size_t, uint8_t, void*
    ) noexcept
    ctypedef int (*_on_chunk)(nghttp2_session*, uint8_t, int32_t, const uint8_t*, size_t, void*) noexcept
    ctypedef int (*_on_close)(nghttp2_session*, int32_t, uint32_t, void*) noexcept

    int nghttp2_session_callbacks_new(nghttp2_session_callbacks**)
    void nghttp2_session_callbacks_set_on_begin_headers_callback(nghttp2_session_callbacks*, _on_frame)
    void nghttp2_session_callbacks_set_on_header_callback(nghttp2_session_callbacks*, _on_header)
    void nghttp2_session_callbacks_set_on_frame_recv_callback(nghttp2_session_callbacks*, _on_frame)
    void nghttp2_session_callbacks_set_on_data_chunk_recv_callback(nghttp2_session_callbacks*, _on_chunk)
    void nghttp2_session_callbacks_set_on_stream_close_callback(nghttp2_session_callbacks*, _on_close)

    int nghttp2_option_new(nghttp2_option**)
    void nghttp2_option_set_no_closed_streams(nghttp2_option*, int)

    int nghttp2_session_server_new2(
        nghttp2_session**, const nghttp2_session_callbacks*, void*, const nghttp2_option*
    )
    void nghttp2_session_del(nghttp2_session*)
    ssize_t nghttp2_session_mem_recv(nghttp2_session*, const uint8_t*, size_t)
    ssize_t nghttp2_session_mem_send(nghttp2_session*, const uint8_t**)
    int nghttp2_session_want_read(nghttp2_session*)
    int nghttp2_session_want_write(nghttp2_session*)
    size_t nghttp2_session_get_outbound_queue_size(nghttp2_session*)
    void* nghttp2_session_get_stream_user_data(nghttp2_session*, int32_t)
    int nghttp2_session_set_stream_user_data(nghttp2_session*, int32_t, void*)
    int nghttp2_session_set_local_window_size(nghttp2_session*, uint8_t, int32_t, int32_t)
    int nghttp2_session_terminate_session(nghttp2_session*, uint32_t)
    int nghttp2_submit_settings(nghttp2_session*, uint8_t, const nghttp2_settings_entry*, size_t)
    int nghttp2_submit_response(
        nghttp2_session*, int32_t, const nghttp2_nv*, size_t, const nghttp2_data_provider*
    )
    int nghttp2_submit_trailer(nghttp2_session*, int32_t, const nghttp2_nv*, size_t)
    int nghttp2_submit_shutdown_notice(nghttp2_session*)


cdef extern from *:
    """
    /* A bound on rapid resets came with nghttp2 1.57; distributions carry it back. Where it isn't there the session's
       own bound on unanswered calls still holds. */
    extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t)
        __attribute__((weak));
    static void limit_stream_resets(nghttp2_option *option, uint64_t burst, uint64_t rate) {
        if (nghttp2_option_set_stream_reset_rate_limit) {
            nghttp2_option_set_stream_reset_rate_limit(option, burst, rate);
        }
    }
    """
    void limit_stream_resets(nghttp2_option* option, uint64_t burst, uint64_t rate)


cdef enum:
    PREFIX_BYTES = 5
    # What a stream costs beside its message: nghttp2's record of it, ours, a call, the frames of an answer. Every bound
    # counts it, so that many empty calls are bounded like a few long ones.
    CALL_BYTES = 1024
    # A frame that waits in nghttp2's queue.
    FRAME_BYTES = 256
    # The most that one data_to_send gives: a slow reader costs the transport one piece at a time.
    PIECE_BYTES = 65536
    STATUS_TEXT_MAX = 1024
    # A peer whose calls all time out together resets them together; faster than this is a flood.
    RESET_BURST = 20000
    RESETS_PER_SECOND = 2000

cdef enum GrpcStatus:
    INVALID_ARGUMENT = 3
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13

cdef enum Phase:
    READING  # headers, or a message that isn't whole
    WHOLE  # a message, but the peer hasn't ended its side
    IN_WORK  # handed out
    ANSWERED  # whatever still comes is swallowed

cdef enum Encoding:
    NO_ENCODING
    IDENTITY
    UNKNOWN_ENCODING

cdef struct Stream:
    Stream* previous
    Stream* following
    PyObject* route  # these three are owned
    PyObject* message
    PyObject* answer
    char* partial
    size_t partial_size
    size_t partial_filled
    size_t message_bytes
    size_t answer_sent  # of prefix and message
    int64_t timeout_ms
    size_t header_bytes
    int32_t id
    Phase phase
    Encoding encoding
    bint posted
    bint is_grpc
    bint unfinished  # the peer hasn't ended its side
    uint8_t prefix[PREFIX_BYTES]
    uint8_t prefix_filled

cdef nghttp2_session_callbacks* _callbacks = NULL
cdef nghttp2_option* _option = NULL
cdef nghttp2_nv[2] _ANSWER_HEAD
cdef nghttp2_nv[1] _ANSWER_TRAILER
# One for all sessions: filled and copied out within one call under the interpreter's lock, with no Python code between.
cdef uint8_t[PIECE_BYTES] _piece
cdef uint64_t _last_serial = 0


@cython.final
@cython.freelist(256)
@cython.no_gc  # it refers to bytes and to the table's entry, which don't refer back: nothing for the collector to do
cdef class Call:
    cdef readonly object route
    cdef readonly bytes message
    cdef readonly int32_t stream_id
    cdef int64_t _timeout_ms
    cdef uint64_t _serial
    cdef bint _settled

    __class_getitem__ = classmethod(GenericAlias)

    def __init__(self):
        raise TypeError("a Call comes from Session.receive")

    @property
    def timeout_ms(self):
        return None if self._timeout_ms < 0 else self._timeout_ms

    def __repr__(self):
        return f"Call(stream_id={self.stream_id}, route={self.route!r}, {len(self.message)} bytes)"


@cython.final
cdef class Session:
    cdef nghttp2_session* _session
    cdef Stream* _streams
    cdef Stream* _current  # the one whose header block is being read, or that was used last
    cdef dict _routes
    cdef list _calls
    cdef bytes _last_path
    cdef object _last_route
    cdef const uint8_t* _rest  # of a frame that the last piece had no room for
    cdef size_t _rest_bytes
    cdef uint64_t _serial
    cdef size_t _max_message_bytes
    cdef size_t _max_header_list_bytes
    cdef size_t _max_request_bytes
    cdef size_t _max_answer_bytes
    cdef int32_t _retire_at_stream_id
    cdef size_t _unfinished_bytes
    cdef size_t _work_bytes
    cdef size_t _answer_bytes
    cdef uint32_t _break_code
    cdef bint _broken
    cdef bint _flushed  # nghttp2 had nothing more that may be sent now
    cdef bint _draining
    cdef bint _goodbye_said
    cdef readonly Py_ssize_t open_calls
    cdef readonly Py_ssize_t open_streams

    __class_getitem__ = classmethod(GenericAlias)

    def __cinit__(
        self,
        dict routes not None,
        *,
        size_t max_message_bytes=4 * 1024 * 1024,
        size_t max_header_list_bytes=64 * 1024,
        size_t max_request_bytes=8 * 1024 * 1024,
        size_t max_answer_bytes=1024 * 1024,
        int32_t retire_at_stream_id=1 << 30,
    ):
        global _last_serial
        if not 0 < max_message_bytes <= 1 << 29:
            raise ValueError("max_message_bytes must be from 1 to 2**29")
        _last_serial += 1
        self._serial = _last_serial
        self._routes = routes
        self._calls = []
        self._max_message_bytes = max_message_bytes
        self._max_header_list_bytes = max_header_list_bytes
        self._max_request_bytes = max(max_request_bytes, max_message_bytes + CALL_BYTES)
        self._max_answer_bytes = max_answer_bytes
        self._retire_at_stream_id = retire_at_stream_id
        self._break_code = NGHTTP2_INTERNAL_ERROR
        if nghttp2_session_server_new2(&self._session, _callbacks, <void*>self, _option):
            raise MemoryError()
        self._submit_preface()

    cdef int _submit_preface(self) except -1:
        cdef nghttp2_settings_entry[4] entries
        # Twice the longest message, as nghttp2 opens a window again when half of it is used: none within a call.
        cdef int32_t stream_window = <int32_t>max(2 * (self._max_message_bytes + PREFIX_BYTES), <size_t>(1 << 20))
        entries[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        entries[0].value = 0x7FFFFFFF  # the broker doesn't send what is over a lower one
        entries[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        entries[1].value = stream_window
        entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        entries[2].value = <uint32_t>self._max_header_list_bytes
        # Answers are short and of equal rank; a tree of priorities would be built for nothing, and by the peer.
        entries[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
        entries[3].value = 1
        if nghttp2_submit_settings(self._session, NGHTTP2_FLAG_NONE, entries, 4):
            raise MemoryError()
        if nghttp2_session_set_local_window_size(self._session, NGHTTP2_FLAG_NONE, 0, max(stream_window, 1 << 24)):
            raise MemoryError()
        return 0

    def __dealloc__(self):
        cdef Stream* stream = self._streams
        cdef Stream* following
        # Streams that are still open get no close callback.
        nghttp2_session_del(self._session)
        while stream != NULL:
            following = stream.following
            _free_stream(stream)
            stream = following

    # --- bytes in ---

    def receive(self, data not None):
        cdef Py_buffer view
        cdef ssize_t status
        cdef list calls
        if self._broken:
            return []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        status = nghttp2_session_mem_recv(self._session, <const uint8_t*>view.buf, view.len)
        PyBuffer_Release(&view)
        self._flushed = False
        if status < 0:
            self._break(status)
        calls = self._calls
        if calls:
            self._calls = []
            return calls
        return []

    cdef void _break(self, ssize_t status) noexcept:  # C calls alone; without memory for a GOAWAY the peer gets none
        cdef uint32_t code = self._break_code
        self._broken = True
        if status == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
            code = NGHTTP2_PROTOCOL_ERROR
        elif status == NGHTTP2_ERR_FLOODED:
            code = NGHTTP2_ENHANCE_YOUR_CALM
        nghttp2_session_terminate_session(self._session, code)

    cdef int _begin(self, int32_t stream_id) noexcept:  # C alone
        cdef Stream* stream
        if self._unfinished_bytes > 2 * self._max_request_bytes:
            # Its requests were refused for some time, and still it ends none of them: no peer that means well.
            self._break_code = NGHTTP2_ENHANCE_YOUR_CALM
            return NGHTTP2_ERR_CALLBACK_FAILURE
        stream = <Stream*>calloc(1, sizeof(Stream))
        if stream == NULL:
            return NGHTTP2_ERR_CALLBACK_FAILURE
        stream.id = stream_id
        stream.timeout_ms = -1
        stream.unfinished = True
        stream.following = self._streams
        if self._streams != NULL:
            self._streams.previous = stream
        self._streams = stream
        self._current = stream
        self._unfinished_bytes += CALL_BYTES
        self.open_streams += 1
        if stream_id >= self._retire_at_stream_id:
            self._draining = True
        return nghttp2_session_set_stream_user_data(self._session, stream_id, stream)

    cdef int _read_header(
        self, const uint8_t* name, size_t name_bytes, const uint8_t* value, size_t value_bytes
    ) noexcept:  # what can raise is in _look_up
        cdef Stream* stream = self._current
        if stream == NULL:
            return 0
        stream.header_bytes += name_bytes + value_bytes + 32
        if name_bytes == 5:
            if memcmp(name, b":path", 5) == 0:
                return self._look_up(stream, value, value_bytes)
        elif name_bytes == 7:
            if memcmp(name, b":method", 7) == 0:
                stream.posted = value_bytes == 4 and memcmp(value, b"POST", 4) == 0
        elif name_bytes == 12:
            if memcmp(name, b"content-type", 12) == 0:
                stream.is_grpc = _is_grpc(value, value_bytes)
            elif memcmp(name, b"grpc-timeout", 12) == 0:
                stream.timeout_ms = _timeout_ms(value, value_bytes)
        elif name_bytes == 13 and memcmp(name, b"grpc-encoding", 13) == 0:
            stream.encoding = (
                IDENTITY if value_bytes == 8 and memcmp(value, b"identity", 8) == 0 else UNKNOWN_ENCODING
            )
        return 0

    cdef int _look_up(self, Stream* stream, const uint8_t* path, size_t path_bytes) noexcept:  # catches its own
        cdef PyObject* route
        cdef bytes key
        # A connection's calls are nearly all of one method.
        if (
            self._last_path is None
            or <size_t>PyBytes_GET_SIZE(self._last_path) != path_bytes
            or memcmp(PyBytes_AS_STRING(self._last_path), path, path_bytes) != 0
        ):
            try:
                key = PyBytes_FromStringAndSize(<char*>path, path_bytes)
            except MemoryError:
                return NGHTTP2_ERR_CALLBACK_FAILURE
            route = PyDict_GetItem(self._routes, key)
            if route == NULL:
                return 0
            self._last_path = key
            self._last_route = <object>route
        Py_XDECREF(stream.route)
        stream.route = <PyObject*>self._last_route
        Py_INCREF(self._last_route)
        return 0

    cdef int _end_head(self, Stream* stream) noexcept:  # C alone
        if stream.header_bytes > self._max_header_list_bytes:
            return self._refuse(stream, RESOURCE_EXHAUSTED, "the header list is too long")
        if not stream.posted:
            return self._refuse_http(stream, 405, INTERNAL, "the method must be POST")
        if not stream.is_grpc:
            return self._refuse_http(stream, 415, INVALID_ARGUMENT, "the content-type must be application/grpc")
        if stream.route == NULL:
            return self._refuse(stream, UNIMPLEMENTED, "unknown method")
        if self._unfinished_bytes > self._max_request_bytes:
            return self._refuse(stream, RESOURCE_EXHAUSTED, "too many unfinished requests on this connection")
        if self._answer_bytes > 4 * self._max_answer_bytes:
            return self._refuse(stream, RESOURCE_EXHAUSTED, "too many unread answers on this connection")
        return 0

    cdef int _read_body(self, Stream* stream, const uint8_t* data, size_t data_bytes) noexcept:  # see _keep_message
        cdef size_t taken
        cdef int status
        if stream.phase == WHOLE and data_bytes > 0:
            return self._refuse(stream, UNIMPLEMENTED, "the method takes exactly one message")
        if stream.phase != READING:
            return 0
        if stream.prefix_filled < PREFIX_BYTES:
            taken = min(data_bytes, <size_t>(PREFIX_BYTES - stream.prefix_filled))
            memcpy(stream.prefix + stream.prefix_filled, data, taken)
            stream.prefix_filled += <uint8_t>taken
            data += taken
            data_bytes -= taken
            if stream.prefix_filled < PREFIX_BYTES:
                return 0
            status = self._check_prefix(stream)
            if status or stream.phase != READING:
                return status
        taken = stream.message_bytes - stream.partial_filled
        if data_bytes > taken:
            return self._refuse(stream, UNIMPLEMENTED, "the method takes exactly one message")
        if data_bytes == stream.message_bytes:
            return self._keep_message(stream, <const char*>data)
        if data_bytes > 0:
            return self._keep_part(stream, data, data_bytes)
        return 0

    cdef int _check_prefix(self, Stream* stream) noexcept:  # C alone
        stream.message_bytes = (
            <size_t>stream.prefix[1] << 24 | <size_t>stream.prefix[2] << 16
            | <size_t>stream.prefix[3] << 8 | <size_t>stream.prefix[4]
        )
        if stream.prefix[0] == 1:
            if stream.encoding == UNKNOWN_ENCODING:
                return self._refuse(stream, UNIMPLEMENTED, "the grpc-encoding is not known")
            return self._refuse(stream, INTERNAL, "compressed flag set without a grpc-encoding")
        if stream.prefix[0] != 0:
            return self._refuse(stream, INTERNAL, "bad flag of a message")
        if stream.message_bytes > self._max_message_bytes:
            return self._refuse(stream, RESOURCE_EXHAUSTED, "the message is too long")
        return 0

    cdef int _keep_message(self, Stream* stream, const char* data) noexcept:  # catches its own
        cdef bytes message
        if self._unfinished_bytes - stream.partial_size + stream.message_bytes > self._max_request_bytes:
            return self._refuse(stream, RESOURCE_EXHAUSTED, "too many unfinished requests on this connection")
        try:
            message = PyBytes_FromStringAndSize(<char*>data, stream.message_bytes)
        except MemoryError:
            return NGHTTP2_ERR_CALLBACK_FAILURE
        self._drop_partial(stream)
        Py_INCREF(message)
        stream.message = <PyObject*>message
        stream.phase = WHOLE
        self._unfinished_bytes += stream.message_bytes
        return 0

    cdef int _keep_part(self, Stream* stream, const uint8_t* data, size_t data_bytes) noexcept:  # as _keep_message
        cdef size_t needed = stream.partial_filled + data_bytes
        cdef size_t size = stream.partial_size
        cdef char* grown
        if needed > size:
            # By what has come, not by what was announced: the announcement is free.
            size = min(max(2 * size, needed), stream.message_bytes)
            if self._unfinished_bytes - stream.partial_size + size > self._max_request_bytes:
                return self._refuse(stream, RESOURCE_EXHAUSTED, "too many unfinished requests on this connection")
            grown = <char*>realloc(stream.partial, size)
            if grown == NULL:
                return NGHTTP2_ERR_CALLBACK_FAILURE
            self._unfinished_bytes += size - stream.partial_size
            stream.partial = grown
            stream.partial_size = size
        memcpy(stream.partial + stream.partial_filled, data, data_bytes)
        stream.partial_filled = needed
        return self._keep_message(stream, stream.partial) if needed == stream.message_bytes else 0

    cdef void _drop_partial(self, Stream* stream) noexcept:  # C alone
        self._unfinished_bytes -= stream.partial_size
        free(stream.partial)
        stream.partial = NULL
        stream.partial_size = 0
        stream.partial_filled = 0

    cdef void _drop_message(self, Stream* stream) noexcept:  # bytes have no finaliser
        if stream.phase == WHOLE:
            self._unfinished_bytes -= stream.message_bytes
        Py_XDECREF(stream.message)
        stream.message = NULL

    cdef int _end_request(self, Stream* stream) noexcept:  # as _hand_out
        cdef int status = 0
        if stream.phase == WHOLE:
            status = self._hand_out(stream)
        elif stream.phase == READING:
            if stream.prefix_filled == 0:
                status = self._refuse(stream, UNIMPLEMENTED, "the method takes exactly one message")
            else:
                status = self._refuse(stream, INTERNAL, "the request ends within its message")
        if stream.unfinished:
            stream.unfinished = False
            self._unfinished_bytes -= CALL_BYTES
        return status

    cdef int _hand_out(self, Stream* stream) noexcept:  # catches its own
        cdef Call call
        try:
            call = Call.__new__(Call)
            call.route = <object>stream.route
            call.message = <bytes>stream.message
            call.stream_id = stream.id
            call._timeout_ms = stream.timeout_ms
            call._serial = self._serial
            self._calls.append(call)
        except MemoryError:
            return NGHTTP2_ERR_CALLBACK_FAILURE
        self._drop_message(stream)
        stream.phase = IN_WORK
        self.open_calls += 1
        self._work_bytes += stream.message_bytes + CALL_BYTES
        return 0

    cdef void _forget(self, Stream* stream) noexcept:  # C alone
        if self._current == stream:
            self._current = NULL
        if stream.previous != NULL:
            stream.previous.following = stream.following
        else:
            self._streams = stream.following
        if stream.following != NULL:
            stream.following.previous = stream.previous
        self._drop_partial(stream)
        self._drop_message(stream)
        self._drop_answer(stream)
        if stream.unfinished:
            self._unfinished_bytes -= CALL_BYTES
        self.open_streams -= 1
        _free_stream(stream)

    cdef inline Stream* _find(self, int32_t stream_id) noexcept:  # C alone
        if self._current != NULL and self._current.id == stream_id:
            return self._current
        return <Stream*>nghttp2_session_get_stream_user_data(self._session, stream_id)

    # --- answers ---

    def respond(self, Call call not None, bytes message not None):
        cdef nghttp2_data_provider provider
        cdef Stream* stream = self._settle(call)
        if stream == NULL:
            return
        if PyBytes_GET_SIZE(message) > 0xFFFFFFFF:
            raise ValueError("a gRPC message is shorter than 2**32 bytes")
        provider.source.ptr = stream
        provider.read_callback = _read_answer
        if nghttp2_submit_response(self._session, stream.id, _ANSWER_HEAD, 2, &provider):
            raise MemoryError()
        Py_INCREF(message)
        stream.answer = <PyObject*>message
        stream.phase = ANSWERED
        self._answer_bytes += PyBytes_GET_SIZE(message) + CALL_BYTES
        self._flushed = False

    def fail(self, Call call not None, int status, str message not None=""):
        cdef bytes text
        cdef Stream* stream
        if not 1 <= status <= 16:
            raise ValueError(f"{status} is not a gRPC status of a failure")
        text = _percent_encode(message[:STATUS_TEXT_MAX].encode("utf-8", "replace"))
        stream = self._settle(call)
        if stream != NULL and self._submit_trailers_only(
            stream, 200, status, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
        ):
            raise MemoryError()

    cdef Stream* _settle(self, Call call) except? NULL:
        """The call's stream, where it waits for an answer."""
        if call._serial != self._serial:
            raise ValueError("the call is another session's")
        if call._settled:
            return NULL
        call._settled = True
        self.open_calls -= 1
        self._work_bytes -= PyBytes_GET_SIZE(call.message) + CALL_BYTES
        return <Stream*>nghttp2_session_get_stream_user_data(self._session, call.stream_id)

    cdef int _refuse(self, Stream* stream, int status, const char* text) noexcept:  # C alone
        return self._refuse_http(stream, 200, status, text)

    cdef int _refuse_http(self, Stream* stream, int http_status, int status, const char* text) noexcept:  # C alone
        cdef size_t length = 0
        while text[length] != 0:
            length += 1
        self._drop_partial(stream)
        self._drop_message(stream)
        return NGHTTP2_ERR_CALLBACK_FAILURE if self._submit_trailers_only(
            stream, http_status, status, text, length
        ) else 0

    cdef int _submit_trailers_only(
        self, Stream* stream, int http_status, int status, const char* text, size_t text_bytes
    ) noexcept:  # C alone
        cdef nghttp2_nv[6] fields
        cdef uint8_t[3] http_digits
        cdef uint8_t[2] digits
        cdef size_t count = 4
        http_digits[0] = <uint8_t>(c'0' + http_status // 100)
        http_digits[1] = <uint8_t>(c'0' + http_status // 10 % 10)
        http_digits[2] = <uint8_t>(c'0' + http_status % 10)
        digits[0] = <uint8_t>(c'0' + (status // 10 if status >= 10 else status))
        digits[1] = <uint8_t>(c'0' + status % 10)
        _set_field(&fields[0], ":status", 7, <const char*>http_digits, 3, NGHTTP2_NV_FLAG_NONE)
        fields[1] = _ANSWER_HEAD[1]
        _set_field(&fields[2], "grpc-status", 11, <const char*>digits, 2 if status >= 10 else 1, NGHTTP2_NV_FLAG_NONE)
        # Texts vary: they'd only push what repeats out of the peer's table.
        _set_field(&fields[3], "grpc-message", 12, text, text_bytes, NGHTTP2_NV_FLAG_NO_INDEX)
        if http_status == 405:
            _set_field(&fields[count], "allow", 5, "POST", 4, NGHTTP2_NV_FLAG_NO_INDEX)
            count += 1
        elif stream.encoding == UNKNOWN_ENCODING:
            _set_field(&fields[count], "grpc-accept-encoding", 20, "identity", 8, NGHTTP2_NV_FLAG_NONE)
            count += 1
        stream.phase = ANSWERED
        self._flushed = False
        return nghttp2_submit_response(self._session, stream.id, fields, count, NULL)

    cdef void _drop_answer(self, Stream* stream) noexcept:  # bytes have no finaliser
        if stream.answer != NULL:
            self._answer_bytes -= PyBytes_GET_SIZE(<bytes>stream.answer) + CALL_BYTES
            Py_XDECREF(stream.answer)
            stream.answer = NULL

    # --- bytes out ---

    def data_to_send(self):
        cdef size_t filled = 0
        cdef size_t taken
        cdef ssize_t length
        while filled < PIECE_BYTES:
            if self._rest_bytes == 0:
                length = nghttp2_session_mem_send(self._session, &self._rest)
                if length < 0:
                    # Out of memory: nothing more can be said to this peer.
                    self._broken = True
                    self._flushed = True
                    break
                if length == 0:
                    if self._say_goodbye():
                        continue
                    self._flushed = True
                    break
                self._rest_bytes = <size_t>length
            taken = min(self._rest_bytes, PIECE_BYTES - filled)
            memcpy(_piece + filled, self._rest, taken)
            filled += taken
            self._rest += taken
            self._rest_bytes -= taken
        return PyBytes_FromStringAndSize(<char*>_piece, filled) if filled else b""

    cdef bint _say_goodbye(self) noexcept:  # C alone
        if not self._draining or self._goodbye_said or self.open_streams > 0 or self._broken:
            return False
        self._goodbye_said = nghttp2_submit_shutdown_notice(self._session) == 0
        return self._goodbye_said

    # --- state ---

    def start_drain(self):
        self._draining = True

    @property
    def draining(self):
        return self._draining

    @property
    def drained(self):
        return self._goodbye_said and self._flushed and self.open_streams == 0 and self.open_calls == 0

    @property
    def closing(self):
        if not self._flushed:
            return False
        return self._broken or not (
            nghttp2_session_want_read(self._session) or nghttp2_session_want_write(self._session)
        )

    @property
    def paused(self):
        if self._work_bytes >= self._max_request_bytes:
            return True
        return not self._flushed and self._unsent_bytes() > self._max_answer_bytes

    @property
    def buffered_bytes(self):
        return self._unfinished_bytes + self._work_bytes + self._unsent_bytes()

    cdef inline size_t _unsent_bytes(self) noexcept:  # C alone
        return self._answer_bytes + FRAME_BYTES * nghttp2_session_get_outbound_queue_size(self._session)


# --- what nghttp2 calls -----------------------------------------------------------------------------------------------
#
# All noexcept, as an exception can't cross nghttp2: each says with its return value that the connection ends.


cdef int _on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept:
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        return (<Session>user_data)._begin(frame.hd.stream_id)
    return 0


cdef int _on_header_field(
    nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_bytes,
    const uint8_t* value, size_t value_bytes, uint8_t flags, void* user_data,
) noexcept:
    if frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        return (<Session>user_data)._read_header(name, name_bytes, value, value_bytes)
    return 0


cdef int _on_frame_recv(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept:
    cdef Stream* stream
    cdef int status = 0
    if frame.hd.type != NGHTTP2_DATA and frame.hd.type != NGHTTP2_HEADERS:
        return 0
    stream = (<Session>user_data)._find(frame.hd.stream_id)
    if stream == NULL:
        return 0
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        status = (<Session>user_data)._end_head(stream)
    if status == 0 and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        status = (<Session>user_data)._end_request(stream)
    return status


cdef int _on_data_chunk_recv(
    nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t data_bytes, void* user_data
) noexcept:
    cdef Stream* stream = (<Session>user_data)._find(stream_id)
    if stream == NULL:
        return 0
    return (<Session>user_data)._read_body(stream, data, data_bytes)


cdef int _on_stream_close(
    nghttp2_session* session, int32_t stream_id, uint32_t error_code, void* user_data
) noexcept:
    cdef Stream* stream = (<Session>user_data)._find(stream_id)
    if stream != NULL:
        (<Session>user_data)._forget(stream)
    return 0


cdef ssize_t _read_answer(
    nghttp2_session* session, int32_t stream_id, uint8_t* room, size_t room_bytes, uint32_t* data_flags,
    nghttp2_data_source* source, void* user_data,
) noexcept:
    cdef Stream* stream = <Stream*>source.ptr
    cdef size_t length = PyBytes_GET_SIZE(<bytes>stream.answer)
    cdef size_t written = 0
    cdef size_t taken
    cdef uint8_t[PREFIX_BYTES] prefix
    if stream.answer_sent < PREFIX_BYTES:
        prefix[0] = 0
        prefix[1] = <uint8_t>(length >> 24)
        prefix[2] = <uint8_t>(length >> 16)
        prefix[3] = <uint8_t>(length >> 8)
        prefix[4] = <uint8_t>length
        written = min(PREFIX_BYTES - stream.answer_sent, room_bytes)
        memcpy(room, prefix + stream.answer_sent, written)
        stream.answer_sent += written
    if stream.answer_sent >= PREFIX_BYTES:
        taken = min(length + PREFIX_BYTES - stream.answer_sent, room_bytes - written)
        memcpy(room + written, PyBytes_AS_STRING(<bytes>stream.answer) + stream.answer_sent - PREFIX_BYTES, taken)
        stream.answer_sent += taken
        written += taken
        if stream.answer_sent == length + PREFIX_BYTES:
            data_flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
            (<Session>user_data)._drop_answer(stream)
            if nghttp2_submit_trailer(session, stream_id, _ANSWER_TRAILER, 1):
                return NGHTTP2_ERR_CALLBACK_FAILURE
    return written


# --- small readers and writers ----------------------------------------------------------------------------------------


cdef void _free_stream(Stream* stream) noexcept:  # a route's finaliser can't run: the table holds it too
    Py_XDECREF(stream.route)
    Py_XDECREF(stream.message)
    Py_XDECREF(stream.answer)
    free(stream.partial)
    free(stream)


cdef bint _is_grpc(const uint8_t* value, size_t length) noexcept:  # C alone
    if length < 16 or memcmp(value, b"application/grpc", 16) != 0:
        return False
    return length == 16 or value[16] == c'+' or value[16] == c';'


cdef int64_t _timeout_ms(const uint8_t* value, size_t length) noexcept:  # C alone
    """Milliseconds, rounded up; -1 where it can't be read: then there is none, as gRPC's own core has it."""
    cdef int64_t amount = 0
    cdef size_t index
    if not 2 <= length <= 9:
        return -1
    for index in range(length - 1):
        if not c'0' <= value[index] <= c'9':
            return -1
        amount = 10 * amount + (value[index] - c'0')
    if value[length - 1] == c'S':
        return amount * 1000
    if value[length - 1] == c'm':
        return amount
    if value[length - 1] == c'M':
        return amount * 60_000
    if value[length - 1] == c'H':
        return amount * 3_600_000
    if value[length - 1] == c'u':
        return (amount + 999) // 1000
    if value[length - 1] == c'n':
        return (amount + 999_999) // 1_000_000
    return -1


cdef bytes _percent_encode(bytes text):
    """As gRPC's status messages are written; blanks at the ends too, which HTTP would strip."""
    cdef bytearray encoded = bytearray()
    cdef Py_ssize_t last = len(text) - 1
    cdef Py_ssize_t index
    cdef uint8_t byte
    for index in range(last + 1):
        byte = text[index]
        if 0x20 < byte < 0x7F and byte != c'%' or byte == 0x20 and 0 < index < last:
            encoded.append(byte)
        else:
            encoded += b"%%%02X" % byte
    return bytes(encoded)


cdef void _set_field(
    nghttp2_nv* field, const char* name, size_t name_bytes, const char* value, size_t value_bytes, uint8_t flags
) noexcept:  # C alone
    field.name = <uint8_t*>name
    field.namelen = name_bytes
    field.value = <uint8_t*>value
    field.valuelen = value_bytes
    field.flags = flags | <uint8_t>NGHTTP2_NV_FLAG_NO_COPY_NAME


cdef int _prepare() except -1:
    """What all sessions share, made once and kept."""
    global _callbacks, _option
    _set_field(&_ANSWER_HEAD[0], ":status", 7, "200", 3, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
    _set_field(&_ANSWER_HEAD[1], "content-type", 12, "application/grpc", 16, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
    _set_field(&_ANSWER_TRAILER[0], "grpc-status", 11, "0", 1, NGHTTP2_NV_FLAG_NO_COPY_VALUE)
    if nghttp2_session_callbacks_new(&_callbacks) or nghttp2_option_new(&_option):
        raise MemoryError()
    nghttp2_session_callbacks_set_on_begin_headers_callback(_callbacks, _on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(_callbacks, _on_header_field)
    nghttp2_session_callbacks_set_on_frame_recv_callback(_callbacks, _on_frame_recv)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(_callbacks, _on_data_chunk_recv)
    nghttp2_session_callbacks_set_on_stream_close_callback(_callbacks, _on_stream_close)
    # Closed streams would be kept for a tree of priorities that isn't used.
    nghttp2_option_set_no_closed_streams(_option, 1)
    limit_stream_resets(_option, RESET_BURST, RESETS_PER_SECOND)
    return 0


_prepare()
