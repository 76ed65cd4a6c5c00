// Runs PersonaNpc against UnityStubs.cs and a scripted transport: the order of its events, and what stays pending.
// It says nothing of Unity itself.
#if !UNITY_5_3_OR_NEWER
using System;
using System.Collections.Generic;
using System.Text;
using System.Threading.Tasks;
using PersonaChat.Unity;

namespace PersonaChat.Tests
{
    internal sealed class PersonaNpcTests : PersonaNpc
    {
        private const string Turn = "state,text 조심히,text " + Answers.Line + ",action e1,action e2,turn 3";

        private static readonly string Busy = FakeTransport.Event("complete", Answers.Busy);
        private static readonly string Unknown = FakeTransport.Event("complete", Answers.Unknown);

        private readonly FakeTransport _fake = new FakeTransport();
        private readonly List<string> _told = new List<string>();

        private PersonaNpcTests()
        {
            Transport = _fake;
            OnState.AddListener(state => _told.Add("state"));
            OnText.AddListener(text => _told.Add("text " + text));
            OnAction.AddListener(action => _told.Add("action " + action.EffectId));
            OnTurn.AddListener(result => _told.Add("turn " + result.Version));
            OnError.AddListener(error => _told.Add("error " + error.Code));
        }

        private string Told => string.Join(",", _told);

        private static int Main()
        {
            Console.OutputEncoding = new UTF8Encoding(false);
            TellsATurnInOrder();
            KeepsWhatWasNotAnswered();
            DropsWhatWasRefused();
            TalksOnFromAListener();
            StaysPendingWhenDisabled();
            Console.WriteLine("{0} failed", Check.Failed);
            return Check.Failed == 0 ? 0 : 1;
        }

        private static void TellsATurnInOrder()
        {
            var npc = new PersonaNpcTests();
            npc._fake.Then(Answers.Whole).Then(Answers.Whole);
            npc.StartSaying("Hello.");
            Check.Equal(Turn, npc.Told, "a turn's events come in order");
            Check.That(npc.Pending == null && !npc.IsBusy, "then nothing is open");
            npc._told.Clear();
            npc.StartSaying("Hello.");
            Check.That(!npc.Told.Contains("action"), "an action happens once");
        }

        private static void KeepsWhatWasNotAnswered()
        {
            var npc = new PersonaNpcTests();
            npc._fake.Then(Busy).Then(Busy).Then(Busy).Then(Busy);
            npc.StartSaying("First.");
            Check.Equal("error busy", npc.Told, "the last failure alone is told");
            Check.Equal("First.", npc.Pending.Text, "the turn stays pending");
            npc._told.Clear();
            npc._fake.Then(Answers.Whole).Then(Answers.Whole);
            npc.StartSaying("Second.");
            Check.That(npc.Told.StartsWith(Turn + ",state"), "it is finished before the next, with its events");
            Check.Equal(npc._fake.Bodies[0], npc._fake.Bodies[4], "as the same turn");
            Check.That(npc._fake.Bodies[5].Contains("Second."), "and the next is said");
        }

        private static void DropsWhatWasRefused()
        {
            var npc = new PersonaNpcTests();
            npc._fake.Then(Unknown);
            npc.StartSaying("Hello.");
            Check.Equal("error unknown_npc", npc.Told, "a refusal is told");
            Check.That(npc.Pending == null, "and is not pending");
            npc.StartCoroutine(npc.Retry());
            Check.That(npc.Told.EndsWith("error invalid_request"), "there is nothing to send again then");
            npc.NpcId = "";
            npc.StartSaying("Hello.");
            Check.Equal(3, npc._told.Count, "an empty id is told as well");
            Check.Equal(0, UnityEngine.Debug.Logged.Count, "no error is told twice");
        }

        private static void TalksOnFromAListener()
        {
            var npc = new PersonaNpcTests();
            npc._fake.Then(Unknown).Then(Answers.Whole).Then(Answers.Whole);
            Task<TurnResult> next = null;
            npc.OnError.AddListener(error => next = npc.SayAsync("Once more."));
            npc.StartSaying("Hello.");
            Check.Equal(3L, next.GetAwaiter().GetResult().Version, "a listener may say the next thing");
            npc._fake.OnPost = () => npc.StartSaying("Meanwhile.");
            npc.StartSaying("Hello.");
            Check.Equal(1, UnityEngine.Debug.Logged.Count, "one who talks into a turn is told in the console");
            Check.That(UnityEngine.Debug.Logged[0] is InvalidOperationException, "with the reason");
        }

        private static void StaysPendingWhenDisabled()
        {
            var npc = new PersonaNpcTests();
            npc._fake.Then(Answers.Whole);
            npc._fake.OnPost = npc.OnDisable;
            Task<TurnResult> turn = npc.SayAsync("Hello.");
            Check.Throws<OperationCanceledException>(() => turn.GetAwaiter().GetResult(), "a turn can be broken off");
            Check.That(npc.Pending != null && !npc.IsBusy && npc.Told == "", "it stays pending, and silent");
            npc._fake.OnPost = null;
            npc._fake.Then(Answers.Whole);
            npc.StartCoroutine(npc.Retry());
            Check.Equal(Turn, npc.Told, "and can be sent again");
        }
    }
}
#endif
