"""Runs generators inside a span: it is the current one while their code runs, and not while their consumer's does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

from nexent_observer._spans import Span, current


def drive(make: Callable[[Span], Generator[Any, Any, Any]], begin: Callable[[], Span]) -> Generator[Any, Any, Any]:
    """Delegates to the generator that `make` gives, as `yield from` would (PEP 380)."""
    span = begin()
    failure = None
    try:
        generator = make(span)
        step: Callable[..., Any] = next
        arguments: tuple[Any, ...] = (generator,)
        while True:
            token = current.set(span)
            try:
                item = step(*arguments)
            except StopIteration as stop:
                return stop.value
            finally:
                current.reset(token)
            try:
                sent = yield item
            except GeneratorExit:
                token = current.set(span)
                try:
                    generator.close()
                finally:
                    current.reset(token)
                raise
            except BaseException as error:  # pylint: disable=broad-exception-caught
                step, arguments = generator.throw, (error,)
            else:
                step, arguments = generator.send, (sent,)
    except GeneratorExit:
        raise
    except BaseException as error:
        failure = error
        raise
    finally:
        span.end(failure)
        del failure


def drive_async(
    start: Callable[[tuple[Any, ...], dict[str, Any]], tuple[AsyncGenerator[Any, Any], Optional[Span]]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """An asynchronous generator function that delegates to the generator that `start` gives, inside its span if there is one.

    A real generator function, because frameworks ask (`inspect.isasyncgenfunction`).
    """

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        generator, span = start(args, kwargs)
        failure = None
        step: Callable[..., Any] = generator.__anext__
        arguments: tuple[Any, ...] = ()
        try:
            while True:
                with _inside(span):
                    try:
                        item = await step(*arguments)
                    except StopAsyncIteration:
                        return
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as error:  # pylint: disable=broad-exception-caught
                    step, arguments = generator.athrow, (error,)
                else:
                    step, arguments = generator.asend, (sent,)
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            try:
                with _inside(span):
                    await generator.aclose()
            finally:
                if span is not None:
                    span.end(failure)
                del failure

    return wrapper


@contextmanager
def _inside(span: Optional[Span]) -> Iterator[None]:
    if span is None:
        yield
        return
    token = current.set(span)
    try:
        yield
    finally:
        current.reset(token)
