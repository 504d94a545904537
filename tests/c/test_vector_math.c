/* exp and 2^x against the C library's in double: the error that csrc/fast/vector_math.h states, and the values at the ends.
 * With an argument, as test_vector_math 1, over every float; otherwise over every 1009th. */
#include "check.h"

#include "fast/vector_math.h"

static float exp_of(float x) {
    float result[LANES];
    store(result, vector_exp(broadcast(x)));
    return result[0];
}

static float exp2_of(float x) {
    float result[LANES];
    store(result, vector_exp2(broadcast(x)));
    return result[0];
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* The distance between neighbouring floats at y. */
static double ulp(double y) {
    int exponent;
    frexp(y, &exponent);
    return ldexp(1.0, (exponent > -125 ? exponent : -125) - 24);
}

static double error_in_ulp(double expected, float found) {
    if (expected > 3.4028235677973366e38) return found == INFINITY ? 0.0 : INFINITY;   // rounds to infinity
    return fabs(found - expected) / ulp(expected);
}

static void check_ends(float function(float)) {
    CHECK(function(0.0f) == 1.0f);
    CHECK(function(-INFINITY) == 0.0f);
    CHECK(function(INFINITY) == INFINITY);
    CHECK(isnan(function(NAN)));
}

int main(int arguments, char **argument) {
    uint32_t step = arguments > 1 ? (uint32_t)strtoul(argument[1], NULL, 10) : 1009;
    double largest = 0.0, largest2 = 0.0;
    if (!is_supported() || step == 0) return SKIPPED;
    #pragma omp parallel for reduction(max : largest, largest2)
    for (int64_t bits = 0; bits <= 0xFFFFFFFF; bits += step) {
        float x = float_of((uint32_t)bits);
        if (x != x) continue;
        largest = fmax(largest, error_in_ulp(exp((double)x), exp_of(x)));
        largest2 = fmax(largest2, error_in_ulp(exp2((double)x), exp2_of(x)));
    }
    printf("exp: at most %.3f ulp, 2^x: %.3f\n", largest, largest2);
    CHECK(largest <= 1.1);
    CHECK(largest2 <= 1.1);
    check_ends(exp_of);
    check_ends(exp2_of);
    for (int n = -149; n < 128; n++) CHECK(exp2_of((float)n) == ldexpf(1.0f, n));   // attention relies on it
    return failures != 0;
}
