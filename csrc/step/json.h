/* A JSON text (RFC 8259), read where it stands: nothing is allocated, and a value is a stretch of the text.
 *
 * json_parse() checks the whole text once. The other functions take only what came from it, so they need no checks of
 * their own. */
#ifndef PYGPT_STEP_JSON_H
#define PYGPT_STEP_JSON_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *text;
    size_t size;
} JsonValue;

/* NULL, or what is wrong with the text, and at which byte. */
const char *json_parse(JsonValue *value, const char *text, size_t size, size_t *place);

int json_is_object(JsonValue value);
int json_is_array(JsonValue value);

/* Walks through an object or array: start with *rest = json_inside(value), and call until it returns 0. */
JsonValue json_inside(JsonValue container);
int json_next(JsonValue *rest, JsonValue *name, JsonValue *value);   // name: of an object's member; NULL for an array

/* The member of that name, the last one if there are several; 0 if there is none. */
int json_member(JsonValue object, const char *name, JsonValue *value);

int json_is(JsonValue value, const char *literal);   // true, false, null
/* These return 0 if the value is something else. */
int json_integer(JsonValue value, int64_t *integer);   // digits without point and exponent, within 64 bits
int json_number(JsonValue value, double *number);
/* Also 0 if the string has more than size - 1 characters. Those beyond ASCII become '?'. */
int json_string(JsonValue value, char *string, size_t size);

#endif
