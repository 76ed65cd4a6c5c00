using System;
using System.Collections;
using System.Threading;
using System.Threading.Tasks;
using UnityEngine;

namespace PersonaChat.Unity
{
    /// <summary>
    /// An NPC that can be talked to: one player, one turn at a time. Its events come on the main thread, in this
    /// order: OnState, OnText (again and again), OnAction (for each action that is new), OnTurn; or OnError.
    /// </summary>
    public class PersonaNpc : MonoBehaviour
    {
        /// <summary>The engine's address. Read when the first turn is said.</summary>
        [Tooltip("The engine's address")]
        public string ServerUrl = "http://127.0.0.1:7860";

        /// <summary>The NPC's id: the name of its file, 1 to 64 characters.</summary>
        [Tooltip("The NPC's id")]
        public string NpcId = "mother_abandoned_factory";

        /// <summary>The player's id, 1 to 128 characters. It is no secret and no log-in.</summary>
        [Tooltip("The player's id; one for each save file")]
        public string PlayerId = "player-1";

        /// <summary>What was decided, before the first word: for a face or a gesture, not for items.</summary>
        public StateEvent OnState = new StateEvent();

        /// <summary>The line so far, each time that it has grown.</summary>
        public TextEvent OnText = new TextEvent();

        /// <summary>An action to carry out now. It comes once in a game, whatever breaks.</summary>
        public ActionEvent OnAction = new ActionEvent();

        /// <summary>The whole answer, after its actions.</summary>
        public TurnEvent OnTurn = new TurnEvent();

        /// <summary>Why no answer came. Where it is retryable, the turn is still <see cref="Pending"/>.</summary>
        public ErrorEvent OnError = new ErrorEvent();

        private ITransport _transport;
        private PersonaClient _client;
        private CancellationTokenSource _cancel;

        /// <summary>How bytes travel. To be set, if at all, before the first turn.</summary>
        public ITransport Transport
        {
            get { return _transport ?? (_transport = new UnityWebRequestTransport()); }
            set { _transport = value; }
        }

        /// <summary>The engine's client, for its other calls ("save", "load", "session", …).</summary>
        /// <exception cref="EngineException">The server's address is empty.</exception>
        public PersonaClient Client => _client ?? (_client = new PersonaClient(ServerUrl, Transport));

        /// <summary>What has been carried out. Save its ids with the game, and set it when a game is loaded.</summary>
        public EffectLedger Ledger { get; set; } = new EffectLedger();

        /// <summary>
        /// The turn that has not been answered, or null. Save its Json with the game: the engine may have played it.
        /// </summary>
        public TurnRequest Pending { get; set; }

        /// <summary>True while a turn is on its way.</summary>
        public bool IsBusy { get; private set; }

        /// <summary>Says something; made for an input field's event in the inspector.</summary>
        /// <param name="text">What the player says.</param>
        public void StartSaying(string text)
        {
            StartCoroutine(Say(text));
        }

        /// <summary>Says something, as a coroutine that ends with the turn; errors are told by OnError alone.</summary>
        /// <param name="text">What the player says.</param>
        /// <param name="context">What the game knows; null leaves it all to the session.</param>
        public IEnumerator Say(string text, TurnContext context = null)
        {
            return Waiting(SayAsync(text, context));
        }

        /// <summary>Sends the pending turn again, as a coroutine; errors are told by OnError alone.</summary>
        public IEnumerator Retry()
        {
            return Waiting(RetryAsync());
        }

        /// <summary>
        /// Says something. A turn that is still pending is finished first, with all its events, so that what it
        /// granted is not lost.
        /// </summary>
        /// <param name="text">What the player says.</param>
        /// <param name="context">What the game knows; null leaves it all to the session.</param>
        /// <exception cref="EngineException">As told by OnError.</exception>
        /// <exception cref="OperationCanceledException">The component was disabled meanwhile.</exception>
        public async Task<TurnResult> SayAsync(string text, TurnContext context = null)
        {
            if (Pending != null)
            {
                await RetryAsync();
            }
            return await RunAsync(() => new TurnRequest(text, NpcId, PlayerId, context));
        }

        /// <summary>Sends the pending turn again with its own id.</summary>
        /// <exception cref="EngineException">As told by OnError; also where no turn is pending.</exception>
        /// <exception cref="OperationCanceledException">The component was disabled meanwhile.</exception>
        public Task<TurnResult> RetryAsync()
        {
            return RunAsync(() =>
            {
                if (Pending == null)
                {
                    throw new EngineException(
                        EngineException.InvalidRequest, "there is no turn to send again", false);
                }
                return Pending;
            });
        }

        /// <summary>Breaks a turn off that is on its way; it stays pending.</summary>
        protected virtual void OnDisable()
        {
            if (_cancel != null)
            {
                _cancel.Cancel();
                _cancel = null;
            }
        }

        private async Task<TurnResult> RunAsync(Func<TurnRequest> request)
        {
            if (IsBusy)
            {
                // Not told by OnError, which is about the turn that is on its way.
                throw new InvalidOperationException("a turn is on its way; wait for OnTurn or OnError");
            }
            IsBusy = true;
            _cancel = new CancellationTokenSource();
            TurnResult result;
            try
            {
                result = await PlayAsync(request(), _cancel.Token);
            }
            catch (EngineException error)
            {
                IsBusy = false; // before the event: its listener may say the next thing
                OnError.Invoke(error);
                throw;
            }
            catch
            {
                IsBusy = false;
                throw;
            }
            IsBusy = false;
            OnTurn.Invoke(result);
            return result;
        }

        private async Task<TurnResult> PlayAsync(TurnRequest request, CancellationToken cancel)
        {
            Pending = request;
            TurnResult result;
            try
            {
                result = await Client.AskStreamAsync(request, OnState.Invoke, OnText.Invoke, cancel);
            }
            catch (EngineException error) when (!error.Retryable)
            {
                Pending = null;
                throw;
            }
            Ledger.Apply(result.Actions, OnAction.Invoke);
            Pending = null;
            return result;
        }

        private static IEnumerator Waiting(Task<TurnResult> turn)
        {
            while (!turn.IsCompleted)
            {
                yield return null;
            }
            // What OnError has told needs no second word; a listener's own mistake must not pass in silence.
            if (turn.IsFaulted && !(turn.Exception.GetBaseException() is EngineException))
            {
                Debug.LogException(turn.Exception.GetBaseException());
            }
        }
    }
}
