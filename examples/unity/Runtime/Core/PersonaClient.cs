using System;
using System.Collections.Generic;
using System.Threading;
using System.Threading.Tasks;

namespace PersonaChat
{
    /// <summary>
    /// Calls the engine. A turn that breaks on the way is sent again with its own id, so it is played once. Keeps
    /// to the thread that it was called on where that thread has a synchronization context, as Unity's main
    /// thread has: callbacks may touch the scene.
    /// </summary>
    public sealed class PersonaClient
    {
        private readonly string _serverUrl;
        private readonly ITransport _transport;
        private readonly RetryPolicy _retry;

        /// <summary>Makes a client; nothing is sent yet.</summary>
        /// <param name="serverUrl">The engine's address, "http://127.0.0.1:7860".</param>
        /// <param name="transport">How bytes travel.</param>
        /// <param name="retry">How often a turn is sent; null for the usual.</param>
        /// <exception cref="EngineException">The address is empty.</exception>
        public PersonaClient(string serverUrl, ITransport transport, RetryPolicy retry = null)
        {
            if (string.IsNullOrEmpty(serverUrl))
            {
                throw new EngineException(
                    EngineException.InvalidRequest, "the server's address is missing", false, "server_url");
            }
            _serverUrl = serverUrl.TrimEnd('/');
            _transport = transport;
            _retry = retry ?? new RetryPolicy();
        }

        /// <summary>Plays a turn and waits for its answer.</summary>
        /// <param name="request">The turn; sent again, it is the same turn.</param>
        /// <param name="cancel">Stops waiting. The turn may have been played: send it again to know.</param>
        /// <exception cref="EngineException">The engine refused it, or no try was answered.</exception>
        /// <exception cref="OperationCanceledException">The wait was stopped.</exception>
        public Task<TurnResult> AskAsync(
            TurnRequest request, CancellationToken cancel = default(CancellationToken))
        {
            return PlayAsync("ask", request, null, cancel);
        }

        /// <summary>Plays a turn and tells it as it comes.</summary>
        /// <param name="request">The turn; sent again, it is the same turn.</param>
        /// <param name="onState">
        /// Gets what was decided, before any word and once, however often the turn had to be sent. May be null.
        /// </param>
        /// <param name="onText">Gets the line so far, each time it has changed. May be null.</param>
        /// <param name="cancel">Stops waiting. The turn may have been played: send it again to know.</param>
        /// <returns>The whole answer, whose state and text have been told by then.</returns>
        /// <exception cref="EngineException">The engine refused it, or no try was answered.</exception>
        /// <exception cref="OperationCanceledException">The wait was stopped.</exception>
        public async Task<TurnResult> AskStreamAsync(
            TurnRequest request,
            Action<TurnState> onState,
            Action<string> onText,
            CancellationToken cancel = default(CancellationToken))
        {
            var teller = new TurnTeller(onState, onText);
            TurnResult result = await PlayAsync("ask_stream", request, teller.OnGenerating, cancel);
            teller.Finish(result);
            return result;
        }

        /// <summary>Makes any call of the engine's API: "status", "session", "save", "load", "undo", …</summary>
        /// <param name="name">The call's name.</param>
        /// <param name="arguments">Its arguments by name; null for none.</param>
        /// <param name="cancel">Stops waiting.</param>
        /// <returns>The answer, which is no {"error": …}: that is thrown.</returns>
        /// <exception cref="EngineException">
        /// The engine refused it, or no answer came. It is not tried again: only a turn has an id that makes this safe.
        /// </exception>
        /// <exception cref="OperationCanceledException">The wait was stopped.</exception>
        public Task<JsonValue> CallAsync(
            string name,
            IDictionary<string, JsonValue> arguments = null,
            CancellationToken cancel = default(CancellationToken))
        {
            JsonValue given = JsonValue.From(arguments ?? new Dictionary<string, JsonValue>());
            return GradioCall.RunAsync(_transport, _serverUrl, name, given, null, cancel);
        }

        private async Task<TurnResult> PlayAsync(
            string name, TurnRequest request, Action<JsonValue> onGenerating, CancellationToken cancel)
        {
            for (int tries = 1; ; tries++)
            {
                try
                {
                    JsonValue answer = await GradioCall.RunAsync(
                        _transport, _serverUrl, name, request.Json, onGenerating, cancel);
                    return TurnResult.FromJson(answer);
                }
                catch (EngineException error) when (error.Retryable && tries < _retry.Tries)
                {
                    await _transport.DelayAsync(_retry.DelayMs(tries), cancel);
                }
            }
        }
    }
}
