# cython: auto_pickle=False, autotestdict=False
"""The hot path's two messages: the few fields used of a MessagePublishRequest, and the answer that rewrites it.

Owns the bytes of those two and nothing else; every other message is the generated classes'. It must not know topics,
payloads, devices or gRPC.

Reading is in two steps. The reader goes through the request once, in C, and marks where the fields lie. It takes only
what it is sure of: known fields in the wire types that they have, of which those that hold text come once. Whatever is
not so – an unknown field, a group, a repeated topic, a length that takes five bytes, text beyond ASCII that is not
read, a cut – it leaves to the generated class, which then reads the request from its beginning and alone says whether
it can be decoded. So nothing here repeats protobuf's rules for the unusual, and nothing here refuses a request.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

cimport cython

from google.protobuf.message import DecodeError

from ota_hook.exhook.exhook_pb2 import MessagePublishRequest


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


IGNORE = b"\x08\x01"

# A tag is the field's number and its wire type. All of ours fit a byte, and one that doesn't is no known field's.

cdef enum:
    VARINT = 0
    LENGTH_DELIMITED = 2

cdef enum RequestTag:
    REQUEST_MESSAGE = 1 << 3 | LENGTH_DELIMITED
    REQUEST_META = 2 << 3 | LENGTH_DELIMITED
    REQUEST_PROPS = 3 << 3 | LENGTH_DELIMITED
    REQUEST_USER_PROPS = 4 << 3 | LENGTH_DELIMITED

cdef enum MessageTag:
    MESSAGE_NODE = 1 << 3 | LENGTH_DELIMITED
    MESSAGE_ID = 2 << 3 | LENGTH_DELIMITED
    MESSAGE_QOS = 3 << 3 | VARINT
    MESSAGE_FROM = 4 << 3 | LENGTH_DELIMITED
    MESSAGE_TOPIC = 5 << 3 | LENGTH_DELIMITED
    MESSAGE_PAYLOAD = 6 << 3 | LENGTH_DELIMITED
    MESSAGE_TIMESTAMP = 7 << 3 | VARINT
    MESSAGE_HEADERS = 8 << 3 | LENGTH_DELIMITED

cdef enum HeaderTag:
    HEADER_KEY = 1 << 3 | LENGTH_DELIMITED
    HEADER_VALUE = 2 << 3 | LENGTH_DELIMITED

cdef enum AnswerTag:
    ANSWER_TYPE = 1 << 3 | VARINT
    ANSWER_MESSAGE = 4 << 3 | LENGTH_DELIMITED

cdef enum:
    STOP_AND_RETURN = 2
    # 256 MiB: MQTT has no longer message, and past five bytes protobuf has rules of its own for a length.
    LENGTH_MAX_BYTES = 4
    # A tenth byte can hold more than 64 bits.
    SCALAR_MAX_BYTES = 9


@cython.final
@cython.freelist(64)
cdef class Publish:
    cdef readonly str topic
    cdef readonly bytes payload
    cdef readonly str clientid
    cdef readonly str username
    cdef readonly uint32_t qos
    cdef readonly uint64_t timestamp_ms

    def __init__(
        self,
        str topic not None,
        bytes payload not None,
        str clientid not None,
        str username not None,
        uint32_t qos,
        uint64_t timestamp_ms,
    ):
        self.topic = topic
        self.payload = payload
        self.clientid = clientid
        self.username = username
        self.qos = qos
        self.timestamp_ms = timestamp_ms


# --- reading ----------------------------------------------------------------------------------------------------------
#
# Everything in this part is `noexcept nogil`: it compares numbers, moves a pointer and makes no object. Only
# _take_tag, _take_varint and _take_span move or follow Reader.at, each after it has looked at Reader.stop; a span lies
# between the two when it is made. Measured: with indexes into the bytes, which Cython checks, a read takes twice as
# long (0.31 µs for 0.15). tests/fuzz and the unit tests put requests in front of a page that can't be read instead.

cdef struct Span:
    const unsigned char *data  # NULL: the field did not come
    Py_ssize_t size

cdef struct Reader:
    const unsigned char *at
    const unsigned char *stop

cdef struct Fields:
    Span topic
    Span payload
    Span clientid
    Span username
    uint32_t qos
    uint64_t timestamp_ms


cdef inline bint _take_tag(Reader *reader, unsigned char *tag) noexcept nogil:
    """False at the end."""
    if reader.at == reader.stop:
        return False
    tag[0] = reader.at[0]
    reader.at += 1
    return True


cdef inline bint _take_varint(Reader *reader, uint64_t *value, int max_bytes) noexcept nogil:
    """`max_bytes` is at most 9. False where it is longer, or cut."""
    cdef uint64_t taken = 0
    cdef unsigned char byte
    cdef int place
    for place in range(max_bytes):
        if reader.at == reader.stop:
            return False
        byte = reader.at[0]
        reader.at += 1
        taken |= <uint64_t>(byte & 0x7F) << (7 * place)
        if byte < 0x80:
            value[0] = taken
            return True
    return False


cdef inline bint _take_span(Reader *reader, Span *span) noexcept nogil:
    """A length, and that many bytes. False where the length is unusual or the bytes are not all there."""
    cdef uint64_t size
    if not _take_varint(reader, &size, LENGTH_MAX_BYTES) or size > <uint64_t>(reader.stop - reader.at):
        return False
    span.data = reader.at
    span.size = <Py_ssize_t>size
    reader.at += span.size
    return True


cdef inline bint _take_text_once(Reader *reader, Span *span) noexcept nogil:
    """False where it came before, too: protobuf looks at the encoding of both, and only one is decoded here."""
    return span.data == NULL and _take_span(reader, span)


cdef inline bint _is_ascii(const Span *span) noexcept nogil:
    cdef const unsigned char *at = span.data
    cdef const unsigned char *stop = span.data + span.size
    cdef uint64_t eight
    while stop - at >= 8:
        memcpy(&eight, at, 8)
        if eight & 0x8080808080808080u:
            return False
        at += 8
    while at < stop:
        if at[0] & 0x80:
            return False
        at += 1
    return True


cdef inline bint _take_ascii(Reader *reader) noexcept nogil:
    cdef Span unread
    return _take_span(reader, &unread) and _is_ascii(&unread)


cdef bint _read_request(Reader *reader, Fields *fields) noexcept nogil:
    """Whether the reader is sure of the whole request, but for the encoding of the texts in `fields`."""
    cdef Span body
    cdef unsigned char tag
    while _take_tag(reader, &tag):
        if not _take_span(reader, &body):
            return False
        if tag == REQUEST_MESSAGE:
            if not _read_message(&body, fields):
                return False
        elif tag == REQUEST_META or tag == REQUEST_PROPS or tag == REQUEST_USER_PROPS:
            if not _pass_strings(&body):
                return False
        else:
            return False
    return True


cdef bint _read_message(const Span *body, Fields *fields) noexcept nogil:
    cdef Reader reader = Reader(body.data, body.data + body.size)
    cdef unsigned char tag
    cdef uint64_t value
    cdef Span entry
    cdef bint sure = True
    while sure and _take_tag(&reader, &tag):
        if tag == MESSAGE_NODE or tag == MESSAGE_ID:
            sure = _take_ascii(&reader)
        elif tag == MESSAGE_QOS:
            sure = _take_varint(&reader, &value, SCALAR_MAX_BYTES)
            fields.qos = <uint32_t>value if sure else 0  # protobuf, too, keeps the low 32 bits
        elif tag == MESSAGE_FROM:
            sure = _take_text_once(&reader, &fields.clientid)
        elif tag == MESSAGE_TOPIC:
            sure = _take_text_once(&reader, &fields.topic)
        elif tag == MESSAGE_PAYLOAD:
            sure = _take_span(&reader, &fields.payload)
        elif tag == MESSAGE_TIMESTAMP:
            sure = _take_varint(&reader, &fields.timestamp_ms, SCALAR_MAX_BYTES)
        elif tag == MESSAGE_HEADERS:
            sure = _take_span(&reader, &entry) and _read_header(&entry, fields)
        else:
            sure = False
    return sure


cdef bint _read_header(const Span *entry, Fields *fields) noexcept nogil:
    cdef Reader reader = Reader(entry.data, entry.data + entry.size)
    cdef Span key = Span(NULL, 0)
    cdef Span value = Span(NULL, 0)
    cdef unsigned char tag
    while _take_tag(&reader, &tag):
        if tag == HEADER_KEY:
            if not _take_text_once(&reader, &key):
                return False
        elif tag == HEADER_VALUE:
            if not _take_text_once(&reader, &value):
                return False
        else:
            return False
    if key.size == 8 and memcmp(key.data, b"username", 8) == 0:
        if fields.username.data != NULL:
            return False
        fields.username = value
        return True
    return _is_ascii(&key) and _is_ascii(&value)


cdef bint _pass_strings(const Span *body) noexcept nogil:
    """Whether nothing but ASCII is in it, in fields numbered 1 to 15: sound as text, and as a field unknown to us."""
    cdef Reader reader = Reader(body.data, body.data + body.size)
    cdef unsigned char tag
    while _take_tag(&reader, &tag):
        if tag & 7 != LENGTH_DELIMITED or not 1 <= tag >> 3 <= 15 or not _take_ascii(&reader):
            return False
    return True


# --- requests ---------------------------------------------------------------------------------------------------------


def read_publish(bytes request not None):
    cdef Fields fields = Fields(Span(NULL, 0), Span(NULL, 0), Span(NULL, 0), Span(NULL, 0), 0, 0)
    cdef const unsigned char *start = <const unsigned char *>PyBytes_AS_STRING(request)
    cdef Reader reader = Reader(start, start + PyBytes_GET_SIZE(request))
    if not _read_request(&reader, &fields):
        return _read_as_generated(request)
    try:
        return _make_publish(&fields)
    except UnicodeDecodeError:
        return _read_as_generated(request)


cdef Publish _make_publish(const Fields *fields):
    cdef Publish publish = Publish.__new__(Publish)
    publish.topic = _text(&fields.topic)
    publish.payload = PyBytes_FromStringAndSize(<const char *>fields.payload.data, fields.payload.size)
    publish.clientid = _text(&fields.clientid)
    publish.username = _text(&fields.username)
    publish.qos = fields.qos
    publish.timestamp_ms = fields.timestamp_ms
    return publish


cdef inline str _text(const Span *span):
    return PyUnicode_DecodeUTF8(<const char *>span.data, span.size, NULL) if span.size else ""


cdef Publish _read_as_generated(bytes request):
    try:
        message = MessagePublishRequest.FromString(request).message
    except DecodeError:
        return None
    return Publish(
        topic=message.topic,
        payload=message.payload,
        clientid=getattr(message, "from"),
        username=message.headers.get("username", ""),
        qos=message.qos,
        timestamp_ms=message.timestamp,
    )


# --- answers ----------------------------------------------------------------------------------------------------------
#
# `noexcept` here for the same reason as above. What is written is counted first by the same rules, so it fits exactly.


def write_rewrite(str topic not None, bytes payload not None, uint32_t qos):
    cdef Py_ssize_t topic_size
    cdef const char *topic_data = PyUnicode_AsUTF8AndSize(topic, &topic_size)
    cdef Py_ssize_t payload_size = PyBytes_GET_SIZE(payload)
    cdef Py_ssize_t message_size = _size_of_bytes(topic_size) + _size_of_bytes(payload_size)
    if qos:
        message_size += 1 + _size_of_varint(qos)
    cdef bytes answer = PyBytes_FromStringAndSize(NULL, 3 + _size_of_varint(message_size) + message_size)
    cdef unsigned char *at = <unsigned char *>PyBytes_AS_STRING(answer)
    at[0] = ANSWER_TYPE
    at[1] = STOP_AND_RETURN
    at[2] = ANSWER_MESSAGE
    at = _put_varint(at + 3, message_size)
    if qos:
        at[0] = MESSAGE_QOS
        at = _put_varint(at + 1, qos)
    at = _put_bytes(at, MESSAGE_TOPIC, topic_data, topic_size)
    _put_bytes(at, MESSAGE_PAYLOAD, PyBytes_AS_STRING(payload), payload_size)
    return answer


cdef inline Py_ssize_t _size_of_varint(uint64_t value) noexcept:
    cdef Py_ssize_t size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline Py_ssize_t _size_of_bytes(Py_ssize_t size) noexcept:
    """What a field of `size` bytes takes: proto3 does not send an empty one."""
    return 1 + _size_of_varint(size) + size if size else 0


cdef inline unsigned char *_put_varint(unsigned char *at, uint64_t value) noexcept:
    while value >= 0x80:
        at[0] = <unsigned char>(value & 0x7F | 0x80)
        at += 1
        value >>= 7
    at[0] = <unsigned char>value
    return at + 1


cdef inline unsigned char *_put_bytes(
    unsigned char *at, unsigned char tag, const char *data, Py_ssize_t size
) noexcept:
    if size == 0:
        return at
    at[0] = tag
    at = _put_varint(at + 1, size)
    memcpy(at, data, size)
    return at + size
