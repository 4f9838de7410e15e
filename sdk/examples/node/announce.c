/* The probe point of nexent-observer (docs/hooks.md) for Node.js 18 and newer:
 *
 *     gcc -shared -fPIC -O2 -I"$(dirname "$(command -v node)")/../include/node" -o announce.node announce.c
 *
 * (headers: the package libnode-dev of Debian, or node-api-headers of npm). Exports to JavaScript `listening()` and `announce(text)`.
 */
#define NEXENT_OBSERVER_IMPLEMENTATION
#include "../../c/nexent_observer.h"

#include <node_api.h>

/* Longest announcement that the observer reads, in bytes. */
#define MAX_BYTES 1024

static napi_value listening(napi_env env, napi_callback_info info)
{
    napi_value answer = NULL;
    (void)info;
    napi_get_boolean(env, nexent_observer_listening() != 0, &answer);
    return answer;
}

/* A text that is too long is not announced at all: cut, it would be no JSON. */
static napi_value announce(napi_env env, napi_callback_info info)
{
    napi_value text = NULL;
    size_t count = 1, len = 0;
    char bytes[MAX_BYTES + 2]; /* One more than is read, to see that there is more, and the final zero. */

    if (!nexent_observer_listening())
        return NULL;
    if (napi_get_cb_info(env, info, &count, &text, NULL, NULL) != napi_ok || count < 1)
        return NULL;
    if (napi_get_value_string_utf8(env, text, bytes, sizeof bytes, &len) != napi_ok || len > MAX_BYTES)
        return NULL;
    nexent_observer_announce(bytes, len);
    return NULL;
}

NAPI_MODULE_INIT()
{
    napi_value function = NULL;
    if (napi_create_function(env, "listening", NAPI_AUTO_LENGTH, listening, NULL, &function) == napi_ok)
        napi_set_named_property(env, exports, "listening", function);
    if (napi_create_function(env, "announce", NAPI_AUTO_LENGTH, announce, NULL, &function) == napi_ok)
        napi_set_named_property(env, exports, "announce", function);
    return exports;
}
