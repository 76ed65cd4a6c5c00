using System;
using UnityEngine.Events;

namespace PersonaChat.Unity
{
    // Classes of their own, because the inspector of older Unity versions shows no generic UnityEvent.

    /// <summary>Tells what a turn decided, before its first word.</summary>
    [Serializable]
    public sealed class StateEvent : UnityEvent<TurnState>
    {
    }

    /// <summary>Tells the line so far.</summary>
    [Serializable]
    public sealed class TextEvent : UnityEvent<string>
    {
    }

    /// <summary>Tells of an action that has not been carried out yet.</summary>
    [Serializable]
    public sealed class ActionEvent : UnityEvent<TurnAction>
    {
    }

    /// <summary>Tells a turn's whole answer.</summary>
    [Serializable]
    public sealed class TurnEvent : UnityEvent<TurnResult>
    {
    }

    /// <summary>Tells why a turn was not answered.</summary>
    [Serializable]
    public sealed class ErrorEvent : UnityEvent<EngineException>
    {
    }
}
