#include "json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { DEEPEST = 64, LONGEST_NUMBER = 64 };

/* ---- checking ---- */

typedef struct {
    const char *at, *end;
    const char *wrong;
} Text;

static int wrong(Text *t, const char *what) {
    t->wrong = what;
    return 0;
}

static int peek(const Text *t) {
    return t->at < t->end ? (unsigned char)*t->at : -1;
}

static int is_digit(int c) {
    return c >= '0' && c <= '9';
}

static int is_hex(int c) {
    return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static int is_blank(int c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static void skip_blanks(Text *t) {
    while (is_blank(peek(t))) t->at++;
}

static int take(Text *t, int c) {
    skip_blanks(t);
    if (peek(t) != c) return 0;
    t->at++;
    return 1;
}

static int digits(Text *t) {
    if (!is_digit(peek(t))) return wrong(t, "expected a digit");
    while (is_digit(peek(t))) t->at++;
    return 1;
}

static int check_number(Text *t) {
    const char *start = t->at;
    if (peek(t) == '-') t->at++;
    if (peek(t) == '0') {
        t->at++;
    } else if (!digits(t)) {
        return 0;
    }
    if (peek(t) == '.') {
        t->at++;
        if (!digits(t)) return 0;
    }
    if (peek(t) == 'e' || peek(t) == 'E') {
        t->at++;
        if (peek(t) == '+' || peek(t) == '-') t->at++;
        if (!digits(t)) return 0;
    }
    return t->at - start < LONGEST_NUMBER || wrong(t, "expected a shorter number");
}

static int check_escape(Text *t) {
    int c = peek(t);
    if (c <= 0 || !strchr("\"\\/bfnrtu", c)) return wrong(t, "expected an escape");
    t->at++;
    for (int i = 0; c == 'u' && i < 4; i++, t->at++) {
        if (!is_hex(peek(t))) return wrong(t, "expected a hexadecimal digit");
    }
    return 1;
}

static int check_string(Text *t) {
    if (!take(t, '"')) return wrong(t, "expected a string");
    while (peek(t) != '"') {
        if (peek(t) < 0) return wrong(t, "the text ends within a string");
        if (peek(t) < ' ') return wrong(t, "a control character stands in a string");
        if (*t->at++ == '\\' && !check_escape(t)) return 0;
    }
    t->at++;
    return 1;
}

static int check_literal(Text *t) {
    static const char *const literals[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        size_t size = strlen(literals[i]);
        if ((size_t)(t->end - t->at) >= size && memcmp(t->at, literals[i], size) == 0) {
            t->at += size;
            return 1;
        }
    }
    return wrong(t, "expected a value");
}

static int check_value(Text *t, int depth) {
    skip_blanks(t);
    int open = peek(t);
    if (open == '"') return check_string(t);
    if (open == '-' || is_digit(open)) return check_number(t);
    if (open != '{' && open != '[') return check_literal(t);

    int close = open == '{' ? '}' : ']';
    if (depth == DEEPEST) return wrong(t, "values are nested too deeply");
    t->at++;
    if (take(t, close)) return 1;
    do {
        if (open == '{') {
            if (!check_string(t)) return 0;
            if (!take(t, ':')) return wrong(t, "expected ':'");
        }
        if (!check_value(t, depth + 1)) return 0;
    } while (take(t, ','));
    return take(t, close) || wrong(t, open == '{' ? "expected ',' or '}'" : "expected ',' or ']'");
}

const char *json_parse(JsonValue *value, const char *text, size_t size, size_t *place) {
    Text t = {text, text + size, NULL};
    skip_blanks(&t);
    const char *start = t.at;
    if (check_value(&t, 0)) {
        *value = (JsonValue){start, (size_t)(t.at - start)};
        skip_blanks(&t);
        if (t.at < t.end) wrong(&t, "expected the end of the text");
    }
    *place = (size_t)(t.at - text);
    return t.wrong;
}

/* ---- reading, from a text that was found good ---- */

int json_is_object(JsonValue value) {
    return *value.text == '{';
}

int json_is_array(JsonValue value) {
    return *value.text == '[';
}

JsonValue json_inside(JsonValue container) {
    return (JsonValue){container.text + 1, container.size - 2};
}

/* Takes a value, and what separates it from the next one, off the front of *rest. */
static JsonValue take_value(JsonValue *rest) {
    const char *at = rest->text, *end = at + rest->size;
    while (at < end && (is_blank(*at) || *at == ',' || *at == ':')) at++;
    JsonValue value = {at, 0};
    int depth = 0, in_string = 0;
    for (; at < end; at++) {
        if (in_string) {
            if (*at == '\\') {
                at++;
            } else if (*at == '"') {
                in_string = 0;
            }
            continue;
        }
        if (depth == 0 && (*at == ',' || *at == ':' || is_blank(*at))) break;
        if (*at == '"') in_string = 1;
        if (*at == '{' || *at == '[') depth++;
        if (*at == '}' || *at == ']') depth--;
    }
    value.size = (size_t)(at - value.text);
    *rest = (JsonValue){at, (size_t)(end - at)};
    return value;
}

int json_next(JsonValue *rest, JsonValue *name, JsonValue *value) {
    JsonValue first = take_value(rest);
    if (first.size == 0) return 0;
    if (name) *name = first;
    *value = name ? take_value(rest) : first;
    return 1;
}

int json_member(JsonValue object, const char *name, JsonValue *value) {
    JsonValue rest = json_inside(object), key, candidate;
    char decoded[64];
    int found = 0;
    while (json_next(&rest, &key, &candidate)) {
        if (json_string(key, decoded, sizeof decoded) && strcmp(decoded, name) == 0) {
            *value = candidate;
            found = 1;
        }
    }
    return found;
}

int json_is(JsonValue value, const char *literal) {
    return value.size == strlen(literal) && memcmp(value.text, literal, value.size) == 0;
}

/* The number's text with a 0 at its end, as strtoll() and strtod() expect it. */
static int copy_number(JsonValue value, char copy[LONGEST_NUMBER]) {
    if (*value.text != '-' && !is_digit(*value.text)) return 0;
    memcpy(copy, value.text, value.size);
    copy[value.size] = '\0';
    return 1;
}

int json_integer(JsonValue value, int64_t *integer) {
    char copy[LONGEST_NUMBER];
    if (!copy_number(value, copy) || strpbrk(copy, ".eE")) return 0;
    errno = 0;
    *integer = strtoll(copy, NULL, 10);
    return errno == 0;
}

int json_number(JsonValue value, double *number) {
    char copy[LONGEST_NUMBER];
    if (!copy_number(value, copy)) return 0;
    *number = strtod(copy, NULL);
    return 1;
}

int json_string(JsonValue value, char *string, size_t size) {
    static const char escapes[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    if (*value.text != '"') return 0;
    size_t length = 0;
    for (const char *at = value.text + 1; *at != '"'; at++) {
        if (length + 1 >= size) return 0;
        char c = *at;
        if (c == '\\') {
            c = *++at;
            const char *escape = strchr(escapes, c);
            if (escape) {
                c = meanings[escape - escapes];
            } else if (c == 'u') {
                char code[5] = {at[1], at[2], at[3], at[4], '\0'};
                long point = strtol(code, NULL, 16);
                c = point > 0 && point < 128 ? (char)point : '?';
                at += 4;
            }
        }
        string[length++] = (unsigned char)c < 128 ? c : '?';
    }
    string[length] = '\0';
    return 1;
}
